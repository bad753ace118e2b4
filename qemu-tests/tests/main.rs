//! VM tests, a module per topic. Run them with `./dev test`, some of them with `./dev test <part of a name>`.
//!
//! | module | what it is about |
//! |---|---|
//! | `agent_crash` | the agent killed and stopped under running containers |
//! | `agent_kills` | two hundred agents killed at random under a mix of lives |
//! | `boot` | from the kernel to serving, and the ways to end |
//! | `chart` | `vminitctl run --chart` |
//! | `bursts` | hundreds of execs that write and exit at once |
//! | `cli` | `vminitctl run` as a person uses it |
//! | `devices` | which devices a container may open |
//! | `disks` | how a mount finds its device, late ones, and those that are of no use |
//! | `errors` | every code and text that hosts branch on |
//! | `events` | their numbers, resuming, slow subscribers |
//! | `exec` | further processes in a container |
//! | `exec_cli` | `vminitctl exec`, `list` and names of VMs, as a person uses them |
//! | `external` | VMs in another's program, for which a stand-in of vfkit's stands |
//! | `extras` | files for the guest by a disk with a tar archive |
//! | `guest_dial` | ports of the host that the guest dials |
//! | `images` | `vminitctl run` with images and volumes, as a person uses it |
//! | `isolation` | what a container that wants out reaches, and what one that takes everything spoils |
//! | `launch` | what a container gets and does not get from PID 1, launchers that fail |
//! | `machine` | what a guest tells of itself; CPUs and memory off and on; its last words |
//! | `shutdown` | every way to end a VM, what is left behind, filesystems that are frozen |
//! | `time` | a clock that is wrong and is set |
//! | `lifecycle` | states, events, exit statuses, many containers |
//! | `look` | `vminitctl`'s commands about a running VM |
//! | `mount_service` | mounts that belong to no container |
//! | `mounts` | root filesystems from lists of mounts |
//! | `network` | links, DHCP, names, published ports, networks of containers |
//! | `oom` | containers that run out of memory |
//! | `options` | runtime options of Create |
//! | `pause` | Pause and Resume, also over the agent's death |
//! | `pods` | containers that share namespaces |
//! | `power_cut` | what survives when the VM is killed |
//! | `pty` | terminals in the guest |
//! | `reattach` | streams that are lost and replaced |
//! | `oci` | the runtime specification, row by row |
//! | `reaping` | orphans and grandchildren |
//! | `resources` | Update and Stats: limits that bite, figures that are true |
//! | `room` | full filesystems |
//! | `sinks` | output to files, named pipes and programs of the guest |
//! | `supervisor` | the injected supervisor: restarts, its log, its end |
//! | `seccomp` | filters of the runtime spec, for inits and execs |
//! | `stdio` | bytes, their order and their ends |
//! | `terminal` | `vminitctl run -t` on a real terminal of the host |
//! | `verity` | layers that are checked against a root hash |
//! | `wire` | the ports themselves: pings, garbage, silent clients |

mod agent_crash;
mod agent_kills;
mod boot;
mod bursts;
mod chart;
mod cli;
mod devices;
mod disks;
mod errors;
mod events;
mod exec;
mod exec_cli;
mod external;
mod extras;
mod guest_dial;
mod images;
mod isolation;
mod launch;
mod lifecycle;
mod look;
mod machine;
mod mount_service;
mod mounts;
mod network;
mod oci;
mod oom;
mod options;
mod pause;
mod pods;
mod power_cut;
mod pty;
mod reaping;
mod reattach;
mod resources;
mod room;
mod seccomp;
mod shutdown;
mod sinks;
mod stdio;
mod supervisor;
mod terminal;
mod time;
mod verity;
mod wire;
