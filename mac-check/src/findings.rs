//! What is wrong with a program: its libraries, its names.

use std::collections::BTreeSet;

use crate::macho::Program;
use crate::names::{Names, OLDEST};

const VIRTUALIZATION: &str = "/Virtualization.framework/";
/// A program without windows has no use for it, and bindings bring it in unseen.
const APPKIT: &str = "/AppKit.framework/";

/// Of its libraries and its version. `is_vmm`: it alone drives VMs.
pub fn of_libraries(name: &str, program: &Program, is_vmm: bool) -> Vec<String> {
    let mut findings = Vec::new();
    let count = |part: &str| program.libraries.iter().filter(|path| path.contains(part)).count();
    match (count(VIRTUALIZATION), is_vmm) {
        (1, true) | (0, false) => {}
        (n, true) => findings.push(format!("{name}: links Virtualization.framework {n} times")),
        (_, false) => findings.push(format!(
            "{name}: links Virtualization.framework: it would have to be signed with the entitlement"
        )),
    }
    if count(APPKIT) > 0 {
        findings.push(format!("{name}: links AppKit"));
    }
    let mut seen = BTreeSet::new();
    for path in program.libraries.iter().filter(|path| !seen.insert(*path)) {
        findings
            .push(format!("{name}: links {path} twice, by which macOS 26 ends it at its start"));
    }
    if program.oldest != OLDEST {
        let (have, want) = (program.oldest, OLDEST);
        findings.push(format!(
            "{name}: is for macOS {}.{} and later, not {}.{}",
            have.0, have.1, want.0, want.1
        ));
    }
    findings
}

/// Of its classes and selectors.
pub fn of_names(name: &str, program: &Program, table: &Names) -> Vec<String> {
    let mut findings = Vec::new();
    for class in &program.classes {
        match table.classes.get(class) {
            None => findings.push(format!("{name}: class {class} is not in the table of names")),
            // A class that is missing keeps the program from being loaded: no check in it could help.
            Some(since) if *since > OLDEST => findings.push(format!(
                "{name}: class {class} came with macOS {}.{}; the program would not start before",
                since.0, since.1
            )),
            Some(_) => {}
        }
    }
    let unknown = program.selectors.iter().filter(|known| !table.selectors.contains_key(*known));
    findings.extend(
        unknown.map(|selector| format!("{name}: selector {selector} is not in the table of names")),
    );
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vmm() -> Program {
        let libraries =
            ["/usr/lib/libSystem.B.dylib", "/S/Virtualization.framework/Versions/A/Virtualization"];
        Program {
            libraries: libraries.map(str::to_owned).to_vec(),
            oldest: OLDEST,
            ..Program::default()
        }
    }

    #[test]
    fn each_wrong_library_and_version_is_found() {
        assert!(of_libraries("vmm", &vmm(), true).is_empty());
        assert_eq!(of_libraries("vminitctl", &vmm(), false).len(), 1);
        type Spoil = fn(&mut Program);
        let spoil: [(&str, Spoil); 4] = [
            ("0 times", |program| drop(program.libraries.pop())),
            ("twice", |program| program.libraries.push("/usr/lib/libSystem.B.dylib".into())),
            ("AppKit", |program| program.libraries.push("/S/AppKit.framework/AppKit".into())),
            ("not 13.0", |program| program.oldest = (14, 0)),
        ];
        for (text, spoil) in spoil {
            let mut program = vmm();
            spoil(&mut program);
            let findings = of_libraries("vmm", &program, true);
            assert_eq!(findings.len(), 1, "{findings:?}");
            assert!(findings[0].contains(text), "{findings:?}");
        }
    }

    #[test]
    fn a_name_that_nobody_has_looked_up_is_found_and_so_is_a_class_that_came_later() {
        let table = crate::names::parse("class VZA 11\nclass VZB 14\nselector a: 15").unwrap();
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let program = Program {
            classes: names(&["VZA", "VZB", "VZC"]),
            selectors: names(&["a:", "b:"]),
            ..vmm()
        };
        let findings = of_names("vmm", &program, &table);
        let parts = ["VZB came with macOS 14.0", "VZC is not", "b: is not"];
        assert_eq!(findings.len(), parts.len(), "{findings:?}");
        for (finding, part) in findings.iter().zip(parts) {
            assert!(finding.contains(part), "{finding}");
        }
    }
}
