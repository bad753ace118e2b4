//! A container's program that tries to get out: `attack all` tries every way and prints a line for each,
//! `<way>: refused: <why>` or `<way>: reached: <what>`; `attack try WAY...` tries some;
//! `attack call NAME [ARGUMENT...]` makes one system call and prints its answer.
//!
//! Promises: a way leaves nothing behind that would change another's answer: each has a process of its own.
//! Never: is built into an image that we ship.

mod hog;
mod ways;

use std::process::exit;

use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["all"] => ways::WAYS.iter().for_each(attempt),
        ["try", names @ ..] => {
            ways::WAYS.iter().filter(|way| names.contains(&way.0)).for_each(attempt);
        }
        ["call", name, arguments @ ..] => call(number(name), arguments),
        ["hog", what, rest @ ..] => hog::hog(what, rest),
        // What a core_pattern would start as the guest's root.
        ["core-helper", path] => drop(std::fs::write(path, "escaped\n")),
        _ => {
            eprintln!("attack all | try WAY... | call NAME [ARGUMENT...] | hog WHAT");
            exit(64);
        }
    }
}

fn attempt(way: &ways::Way) {
    let (name, way) = way;
    // SAFETY: this process has one thread.
    match unsafe { fork() }.expect("a fork") {
        ForkResult::Child => {
            // Whatever hangs is ended.
            // SAFETY: takes an integer.
            unsafe { libc::alarm(20) };
            match way() {
                Ok(what) => println!("{name}: reached: {what}"),
                Err(why) => println!("{name}: refused: {why}"),
            }
            exit(0);
        }
        ForkResult::Parent { child } => match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, 0)) => {}
            Ok(WaitStatus::Signaled(_, signal, _)) => println!("{name}: refused: {signal}"),
            other => println!("{name}: unclear: {other:?}"),
        },
    }
}

/// Of the calls that tests make. By name, since the numbers are the architecture's own.
fn number(name: &str) -> libc::c_long {
    match name {
        "personality" => libc::SYS_personality,
        "mkdirat" => libc::SYS_mkdirat,
        "acct" => libc::SYS_acct,
        "getpid" => libc::SYS_getpid,
        "reboot" => libc::SYS_reboot,
        _ => {
            eprintln!("{name:?} is no system call of the tests'");
            exit(64)
        }
    }
}

fn call(number: libc::c_long, arguments: &[&str]) {
    let mut values = [0_i64; 6];
    for (value, text) in values.iter_mut().zip(arguments) {
        *value = text.parse().unwrap_or_else(|_| {
            eprintln!("{text:?} is no number");
            exit(64)
        });
    }
    let [a, b, c, d, e, f] = values;
    // SAFETY: the tests pass integers only, or calls that a filter answers; this process does nothing afterwards.
    let answer = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    match answer {
        -1 => println!("{}", name(Errno::last())),
        value => println!("{value}"),
    }
}

/// The errno as the C library's headers have it.
fn name(errno: Errno) -> String {
    format!("{errno:?}")
}
