#!/usr/bin/env bash
# test.sh [--soak | --arch ARCH [--basics]] [FILTER...]: builds, runs all tests, unit and VM, and ends with the line
#   N passed, N failed
# over all suites, alone, for whoever counts. Tests whose names begin with `soak_` are `#[ignore]`d and run only with --soak.
#
# --arch x86_64|arm64 runs the VM tests alone, on guests of that architecture; it makes those first. --basics: a choice of them, for every
# change. Where such guests cannot be had it says so, with a line `N skipped`, and ends with 77.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
source "$(dirname "${BASH_SOURCE[0]}")/cross.sh"
cd "$ROOT"

# What must work on every architecture, of each topic the test that goes furthest.
BASICS=(
    boot::shutdown_without_containers_powers_off
    boot::power_off_ends_containers_that_ignore_term
    lifecycle::container_whole_life_has_its_states_and_events_in_order
    lifecycle::exit_status_is_the_programs_own_or_128_and_the_signal
    exec::exec_is_what_its_process_says_and_else_what_its_container_is
    stdio::twenty_mib_of_stdout_and_of_stderr_arrive_whole_and_are_counted
    stdio::twenty_mib_of_stdin_arrive_and_the_half_close_ends_them
    pty::shell_has_a_terminal_with_echo_size_and_job_control
    pty::output_of_a_terminal_arrives_whole_before_the_exit
    disks::late_disk_is_waited_for_and_holds_up_nobody_and_a_detached_one_is_gone
    mounts::overlay_keeps_times_attributes_links_and_owners_and_its_changes_stay_on_the_disk
    supervisor::supervisor_that_crashes_is_restarted_ever_later_and_then_given_up
    agent_crash::agent_that_is_killed_comes_back_and_containers_live_on
    agent_crash::agent_that_is_killed_again_and_again_loses_no_byte_and_no_exit
    seccomp::filter_acts_as_the_profile_says_with_and_without_no_new_privileges
    seccomp::filter_that_allows_hardly_more_than_the_program_itself_is_enough_with_no_new_privileges
    seccomp::exec_has_the_filter_of_its_container_also_under_another_agent
    seccomp::profile_that_cannot_be_had_fails_the_create_with_its_reason
    cli::run_gives_output_and_status_of_the_command_to_the_byte
)

export VMINITD_DIST=$ROOT/dist
arch=$GUEST_ARCH only=() basics=false arguments=()
while (($#)); do
    case $1 in
    --soak) arguments=(--ignored soak_) ;;
    --arch) arch=${2:?--arch wants x86_64 or arm64} only=(--test vm) && shift ;;
    --basics) basics=true ;;
    *) break ;;
    esac
    shift
done

guest_programs() {
    say "programs that misbehave inside test VMs"
    # The same flags and place as the guest's binary: scripts/build.sh says why.
    RUSTFLAGS="-C target-feature=+crt-static" \
        "${GUEST_CARGO[@]}" build --locked "${GUEST_STD[@]}" --profile guest --target "$TARGET" --target-dir target/guest -p test-guest
    export VMINITD_TEST_GUEST=$ROOT/target/guest/$TARGET/guest
    export VMINITD_TEST_BIN=$VMINITD_TEST_GUEST
}

# Guests of another architecture, and what runs them.
foreign() {
    local status=0
    scripts/build.sh --arch "$arch" || status=$?
    ((status == 0)) || none "$status"
    (scripts/qemu.sh "$arch") || (not_here "$arch" "QEMU cannot be installed") || none "$?"
    busybox=$(cross_busybox "$arch") || none "$?"
    export VMINITD_ARCH=$arch VMINITD_TEST_BUSYBOX=$busybox # vminitctl heeds the first too
}

# What cannot be had here is skipped, as many tests as there are basic ones; what fails is a failure.
none() {
    if (($1 == NOT_HERE)); then
        echo "${#BASICS[@]} skipped"
        echo "0 passed, 0 failed"
    else
        echo "0 passed, 1 failed"
    fi
    exit "$1"
}

# Shows what cargo says as it comes, and adds up what each suite reports.
tally() {
    awk '
        { print; fflush() }
        /^test result: / { for (i = 2; i <= NF; i++) { if ($i == "passed;") passed += $(i - 1); if ($i == "failed;") failed += $(i - 1) } }
        END { print passed + 0, failed + 0 > counts }' counts="$1"
}

if [[ $arch == "$GUEST_ARCH" ]]; then scripts/build.sh; else foreign; fi
cross "$arch"
guest_programs
temp=
temp_dir temp test
if ((${#only[@]} == 0)); then
    scripts/containerd.sh >"$temp/containerd"
    export VMINITD_CONTAINERD=$temp/containerd
    if ((${#arguments[@]})); then
        # Skipped aloud where it cannot be had; the test says so, too.
        VMINITD_GO_CLIENT=$(scripts/go-client.sh) || VMINITD_GO_CLIENT=
        export VMINITD_GO_CLIENT
    fi
fi
! $basics || set -- "${BASICS[@]}" "$@"
say "tests (compiling them takes 2 minutes when everything is new)"
status=0
# The whole workspace also where only some of it runs: with a package's own choice of features its dependencies would be compiled twice.
cargo test --locked --workspace "${only[@]}" --no-run || status=$?
((status)) || CARGO_TERM_QUIET=false cargo test --locked --workspace "${only[@]}" --no-fail-fast -- "${arguments[@]}" "$@" 2>&1 | tally "$temp/counts" || status=$?
passed=0 failed=0
[[ ! -s $temp/counts ]] || read -r passed failed <"$temp/counts"
# A suite that does not compile, or dies, reports no number.
((status == 0 || failed > 0)) || failed=1
echo "$passed passed, $failed failed"
exit "$status"
