//! Device rules of a spec as an eBPF program: pure.
//!
//! Promises: a program allows an access when, for each thing that is asked for (read, write,
//! mknod), the last rule that matches the device and speaks of that thing allows it; what no rule
//! speaks of is denied. Behind the spec's rules come the devices that every container has.
//! Never: loads or attaches a program (`guard` does).
//!
//! runc reaches the same by emulating cgroup v1's lists, and refuses a denial within a wildcard
//! that was allowed before; here the order of the rules is all there is, as the runtime
//! specification has it. A spec without rules, or without resources, means what it means to runc:
//! nothing but the devices that every container has.
//!
//! The program walks the rules from the last to the first and keeps what is not decided yet:
//!
//! ```text
//! undecided = what is asked for
//! for each rule that matches the device, from the last one on:
//!     allows: undecided -= what it speaks of; nothing left: allow
//!     denies: undecided has something that it speaks of: deny
//! allow if nothing is left
//! ```

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::limits::DEVICE_RULES;
use crate::sys::bpf::Instruction;

/// A rule that cannot be understood. The host's fault.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RuleError {
    /// A field of one rule.
    #[error("devices[{index}].{field}: {value} {problem}")]
    Field {
        /// Which rule, from 0 on.
        index: usize,
        /// Its field.
        field: &'static str,
        /// What stands there.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// There are too many.
    #[error("devices: {0} rules are more than {DEVICE_RULES}")]
    TooMany(usize),
}

/// What of a device a rule is about: bits of [`MKNOD`], [`READ`], [`WRITE`].
type Access = u8;

// Values of the kernel's struct bpf_cgroup_dev_ctx, see linux/bpf.h.
const MKNOD: Access = 1;
const READ: Access = 2;
const WRITE: Access = 4;
const BLOCK: u16 = 1;
const CHARACTER: u16 = 2;

/// One rule; what is `None` matches all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<u16>,
    major: Option<u32>,
    minor: Option<u32>,
    access: Access,
}

const fn allow(kind: u16, major: Option<u32>, minor: Option<u32>, access: Access) -> Rule {
    Rule { allow: true, kind: Some(kind), major, minor, access }
}

const fn everyones(major: u32, minor: Option<u32>) -> Rule {
    allow(CHARACTER, Some(major), minor, MKNOD | READ | WRITE)
}

/// What every container may use, as with runc: making nodes of any device (not opening them),
/// null, zero, full, random, urandom, tty, and pseudo-terminals.
const EVERYONES: [Rule; 10] = [
    allow(CHARACTER, None, None, MKNOD),
    allow(BLOCK, None, None, MKNOD),
    everyones(1, Some(3)),
    everyones(1, Some(5)),
    everyones(1, Some(7)),
    everyones(1, Some(8)),
    everyones(1, Some(9)),
    everyones(5, Some(0)),
    everyones(5, Some(2)),
    everyones(136, None),
];

/// The program for these rules of a spec.
pub fn program(rules: &[LinuxDeviceCgroup]) -> Result<Vec<Instruction>, RuleError> {
    if rules.len() > DEVICE_RULES {
        return Err(RuleError::TooMany(rules.len()));
    }
    let mut all = Vec::with_capacity(rules.len() + EVERYONES.len());
    for (index, rule) in rules.iter().enumerate() {
        all.push(parse(index, rule)?);
    }
    all.extend(EVERYONES);
    Ok(compile(&all))
}

fn parse(index: usize, rule: &LinuxDeviceCgroup) -> Result<Rule, RuleError> {
    let refuse = |field, value: String, problem| RuleError::Field { index, field, value, problem };
    let kind = match rule.typ().unwrap_or_default() {
        LinuxDeviceType::A => None,
        LinuxDeviceType::B => Some(BLOCK),
        LinuxDeviceType::C => Some(CHARACTER),
        other @ (LinuxDeviceType::U | LinuxDeviceType::P) => {
            return Err(refuse("type", other.as_str().to_owned(), "is none of a, b and c"));
        }
    };
    let number = |field, number: Option<i64>| match number {
        None | Some(-1) => Ok(None),
        Some(number) => u32::try_from(number)
            .map(Some)
            .map_err(|_| refuse(field, number.to_string(), "is neither a device number nor -1")),
    };
    let text = rule.access().as_deref().filter(|text| !text.is_empty()).unwrap_or("rwm");
    let mut access = 0;
    for letter in text.chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            _ => return Err(refuse("access", format!("{text:?}"), "has more than r, w and m")),
        };
    }
    Ok(Rule {
        allow: rule.allow(),
        kind,
        major: number("major", rule.major())?,
        minor: number("minor", rule.minor())?,
        access,
    })
}

// Registers. The kernel passes struct bpf_cgroup_dev_ctx, three words, in the second one.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const UNDECIDED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

// Operations, see the kernel's Documentation/bpf/standardization/instruction-set.rst.
const LOAD_WORD: u8 = 0x61;
const MOVE_REGISTER: u8 = 0xbc;
const MOVE: u8 = 0xb4;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP: u8 = 0x05;
const JUMP_UNEQUAL: u8 = 0x56;
const JUMP_ANY_BIT: u8 = 0x46;
const EXIT: u8 = 0x95;

fn compile(rules: &[Rule]) -> Vec<Instruction> {
    let load = |to, offset| Instruction {
        code: LOAD_WORD,
        registers: to | CONTEXT << 4,
        offset,
        value: 0,
    };
    let mut program = vec![
        // The first word: kind in the low half, what is asked for in the high one.
        load(KIND, 0),
        Instruction { code: MOVE_REGISTER, registers: UNDECIDED | KIND << 4, offset: 0, value: 0 },
        act(AND, KIND, 0xffff),
        act(SHIFT_RIGHT, UNDECIDED, 16),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    for rule in rules.iter().rev() {
        let verdict = verdict(rule);
        let conditions = [
            rule.kind.map(|kind| (KIND, i32::from(kind))),
            rule.major.map(|major| (MAJOR, major.cast_signed())),
            rule.minor.map(|minor| (MINOR, minor.cast_signed())),
        ];
        let mut left = conditions.iter().flatten().count() + verdict.len();
        for (register, value) in conditions.into_iter().flatten() {
            left -= 1;
            program.push(jump(JUMP_UNEQUAL, register, value, left));
        }
        program.extend(verdict);
    }
    program.extend([
        act(MOVE, RESULT, 0),
        jump(JUMP_UNEQUAL, UNDECIDED, 0, 1),
        act(MOVE, RESULT, 1),
        act(EXIT, 0, 0),
    ]);
    program
}

/// What a rule that matches does.
fn verdict(rule: &Rule) -> [Instruction; 4] {
    if rule.allow {
        [
            act(AND, UNDECIDED, !i32::from(rule.access)),
            jump(JUMP_UNEQUAL, UNDECIDED, 0, 2),
            act(MOVE, RESULT, 1),
            act(EXIT, 0, 0),
        ]
    } else {
        [
            jump(JUMP_ANY_BIT, UNDECIDED, i32::from(rule.access), 1),
            jump(JUMP, 0, 0, 2),
            act(MOVE, RESULT, 0),
            act(EXIT, 0, 0),
        ]
    }
}

fn act(code: u8, register: u8, value: i32) -> Instruction {
    Instruction { code, registers: register, offset: 0, value }
}

/// `skipped` is at most the length of one rule.
fn jump(code: u8, register: u8, value: i32, skipped: usize) -> Instruction {
    let offset = i16::try_from(skipped).expect("a rule has at most seven instructions");
    Instruction { code, registers: register, offset, value }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    struct Asked {
        kind: u16,
        major: u32,
        minor: u32,
        access: Access,
    }

    /// The model: the first page's promise, word by word.
    fn allowed(rules: &[Rule], asked: Asked) -> bool {
        [MKNOD, READ, WRITE].iter().filter(|thing| asked.access & **thing != 0).all(|thing| {
            let last = rules.iter().rfind(|rule| {
                rule.access & thing != 0
                    && rule.kind.is_none_or(|kind| kind == asked.kind)
                    && rule.major.is_none_or(|major| major == asked.major)
                    && rule.minor.is_none_or(|minor| minor == asked.minor)
            });
            last.is_some_and(|rule| rule.allow)
        })
    }

    /// A machine for the instructions that we use; anything else, a step outside the program or
    /// backwards panics, and so does the result of a register that was never set.
    fn run(program: &[Instruction], asked: Asked) -> bool {
        let context =
            [u32::from(asked.kind) | u32::from(asked.access) << 16, asked.major, asked.minor];
        let mut registers: [Option<u32>; 11] = [None; 11];
        let mut at = 0;
        loop {
            let Instruction { code, registers: both, offset, value } = program[at];
            let (to, from) = (usize::from(both & 15), usize::from(both >> 4));
            let skip = usize::try_from(offset).expect("forward only");
            at += 1;
            match code {
                LOAD_WORD => {
                    assert_eq!((from, offset % 4), (usize::from(CONTEXT), 0));
                    registers[to] = Some(context[skip / 4]);
                }
                MOVE_REGISTER => registers[to] = Some(registers[from].expect("set")),
                MOVE => registers[to] = Some(value.cast_unsigned()),
                AND => registers[to] = Some(registers[to].expect("set") & value.cast_unsigned()),
                SHIFT_RIGHT => registers[to] = Some(registers[to].expect("set") >> value),
                JUMP => at += skip,
                JUMP_UNEQUAL if registers[to].expect("set") != value.cast_unsigned() => at += skip,
                JUMP_ANY_BIT if registers[to].expect("set") & value.cast_unsigned() != 0 => {
                    at += skip;
                }
                JUMP_UNEQUAL | JUMP_ANY_BIT => {}
                EXIT => {
                    let result = registers[usize::from(RESULT)].expect("a result");
                    assert!(result <= 1, "the kernel refuses {result}");
                    return result == 1;
                }
                other => panic!("no instruction {other:#x}"),
            }
        }
    }

    /// Every instruction can be reached, which the kernel insists on.
    fn all_reachable(program: &[Instruction]) -> bool {
        let mut reached = vec![false; program.len()];
        let mut next = vec![0];
        while let Some(at) = next.pop() {
            if std::mem::replace(&mut reached[at], true) {
                continue;
            }
            let target = at + 1 + program[at].offset as usize;
            match program[at].code {
                EXIT => {}
                JUMP => next.push(target),
                JUMP_UNEQUAL | JUMP_ANY_BIT => next.extend([at + 1, target]),
                _ => next.push(at + 1),
            }
        }
        reached.iter().all(|reached| *reached)
    }

    /// Few numbers, so that rules and devices meet; the largest ones for the sign.
    fn number() -> impl Strategy<Value = u32> {
        prop_oneof![0u32..4, Just(u32::MAX), Just(0x8000_0000)]
    }

    fn rules() -> impl Strategy<Value = Vec<Rule>> {
        let rule = (
            any::<bool>(),
            proptest::option::of(1u16..=2),
            proptest::option::of(number()),
            proptest::option::of(number()),
            1u8..=7,
        );
        let rule = rule.prop_map(|(allow, kind, major, minor, access)| Rule {
            allow,
            kind,
            major,
            minor,
            access,
        });
        proptest::collection::vec(rule, 0..12)
    }

    proptest! {
        #[test]
        fn program_decides_as_the_last_matching_rules_do(
            rules in rules(),
            devices in proptest::collection::vec((1u16..=2, number(), number(), 1u8..=7), 40),
        ) {
            let program = compile(&rules);
            prop_assert!(all_reachable(&program));
            for (kind, major, minor, access) in devices {
                let asked = Asked { kind, major, minor, access };
                prop_assert_eq!(run(&program, asked), allowed(&rules, asked), "{:?}", asked);
            }
        }
    }

    fn of(json: &str) -> Vec<Instruction> {
        program(&serde_json::from_str::<Vec<LinuxDeviceCgroup>>(json).unwrap()).unwrap()
    }

    fn may(program: &[Instruction], kind: u16, major: u32, minor: u32, access: Access) -> bool {
        run(program, Asked { kind, major, minor, access })
    }

    #[test]
    fn without_rules_there_is_what_every_container_has_and_nothing_else() {
        for json in ["[]", r#"[{"allow":false,"access":"rwm"}]"#] {
            let program = of(json);
            for (major, minor) in
                [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, 77)]
            {
                assert!(
                    may(&program, CHARACTER, major, minor, READ | WRITE | MKNOD),
                    "{major}:{minor}"
                );
                assert!(!may(&program, BLOCK, major, minor, READ), "{major}:{minor}");
            }
            // mem, kmsg, console, a disk: the node may be made and not be opened.
            for (kind, major, minor) in
                [(CHARACTER, 1, 1), (CHARACTER, 1, 11), (CHARACTER, 5, 1), (BLOCK, 254, 0)]
            {
                assert!(may(&program, kind, major, minor, MKNOD));
                assert!(!may(&program, kind, major, minor, READ));
                assert!(!may(&program, kind, major, minor, WRITE));
                assert!(!may(&program, kind, major, minor, READ | WRITE | MKNOD));
            }
        }
    }

    #[test]
    fn rules_of_the_spec_count_in_their_order() {
        let program = of(r#"[{"allow":false,"access":"rwm"},
            {"allow":true,"type":"b","major":254,"minor":-1,"access":"r"},
            {"allow":false,"type":"b","major":254,"minor":16},
            {"allow":true,"type":"c","major":10}]"#);
        assert!(may(&program, BLOCK, 254, 0, READ) && !may(&program, BLOCK, 254, 0, READ | WRITE));
        assert!(!may(&program, BLOCK, 254, 16, READ));
        assert!(may(&program, CHARACTER, 10, 200, READ | WRITE));
        assert!(!may(&program, BLOCK, 10, 200, READ));
        let privileged = of(r#"[{"allow":true,"access":"rwm"}]"#);
        assert!(
            may(&privileged, BLOCK, 254, 0, READ | WRITE)
                && may(&privileged, CHARACTER, 1, 1, READ)
        );
        // Nobody can lose what every container has.
        let denied = of(r#"[{"allow":true},{"allow":false}]"#);
        assert!(may(&denied, CHARACTER, 1, 3, READ) && !may(&denied, CHARACTER, 1, 1, READ));
    }

    #[test]
    fn rule_that_makes_no_sense_is_named() {
        for (json, text) in [
            (r#"{"allow":true,"type":"p"}"#, "devices[1].type: p is none of a, b and c"),
            (
                r#"{"allow":true,"major":-2}"#,
                "devices[1].major: -2 is neither a device number nor -1",
            ),
            (
                r#"{"allow":true,"minor":4294967296}"#,
                "devices[1].minor: 4294967296 is neither a device number nor -1",
            ),
            (
                r#"{"allow":true,"access":"rx"}"#,
                "devices[1].access: \"rx\" has more than r, w and m",
            ),
        ] {
            let rules = format!(r#"[{{"allow":true}},{json}]"#);
            let rules: Vec<LinuxDeviceCgroup> = serde_json::from_str(&rules).unwrap();
            assert_eq!(program(&rules).unwrap_err().to_string(), text);
        }
        let rules = vec![LinuxDeviceCgroup::default(); DEVICE_RULES];
        assert!(program(&rules).is_ok());
        let rules = vec![LinuxDeviceCgroup::default(); DEVICE_RULES + 1];
        assert_eq!(program(&rules), Err(RuleError::TooMany(DEVICE_RULES + 1)));
    }
}
