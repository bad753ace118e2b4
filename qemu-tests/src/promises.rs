//! Holds docs/promises.md, and the choice of tests for every architecture, against the tests that they name.

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    const STATES: [&str; 3] = ["kept", "measured", "pending"];

    struct Promise {
        number: String,
        tests: Vec<String>,
        state: String,
    }

    #[test]
    fn every_promise_names_tests_that_exist_and_run() {
        let promises = read();
        assert!(promises.len() > 10, "the table was not found");
        let mut wrong = Vec::new();
        for (at, promise) in promises.iter().enumerate() {
            if promises[..at].iter().any(|other| other.number == promise.number) {
                wrong.push(format!("{}: given twice", promise.number));
            }
            let state = promise.state.split(' ').next().unwrap_or("");
            if !STATES.contains(&state) {
                wrong.push(format!("{}: {:?} is no state", promise.number, promise.state));
            }
            if state == "kept" && promise.tests.is_empty() {
                wrong.push(format!("{}: kept by nothing", promise.number));
            }
            let broken = promise
                .tests
                .iter()
                .filter_map(|test| Some(format!("{}: {}", promise.number, missing(test)?)));
            wrong.extend(broken);
        }
        assert!(wrong.is_empty(), "docs/promises.md:\n  {}", wrong.join("\n  "));
    }

    /// A filter that no test has in its name selects none, and nobody would see it.
    #[test]
    fn every_basic_test_of_the_script_exists() {
        let script = fs::read_to_string(root().join("scripts/test.sh")).expect("scripts/test.sh");
        let basics = script.split("BASICS=(").nth(1).and_then(|rest| rest.split(')').next());
        let basics: Vec<&str> = basics.expect("BASICS=(...)").split_whitespace().collect();
        assert!(basics.len() > 10, "{basics:?}");
        let wrong: Vec<String> = basics.into_iter().filter_map(missing).collect();
        assert!(wrong.is_empty(), "scripts/test.sh:\n  {}", wrong.join("\n  "));
    }

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
    }

    fn read() -> Vec<Promise> {
        let page = fs::read_to_string(root().join("docs/promises.md")).expect("docs/promises.md");
        let rows = page.lines().filter(|line| line.starts_with("| P"));
        rows.map(|row| {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            assert_eq!(cells.len(), 5, "{row}");
            let tests = cells[3].split('`').skip(1).step_by(2).map(str::to_owned).collect();
            Promise { number: cells[0].to_owned(), tests, state: cells[4].to_owned() }
        })
        .collect()
    }

    /// What is wrong with a named test: `module::name` of a VM test, or `crate/path/file.rs::name`.
    fn missing(test: &str) -> Option<String> {
        let (place, name) = test.rsplit_once("::")?;
        let file = match place.ends_with(".rs") {
            true => root().join(place),
            false => root().join("qemu-tests/tests").join(format!("{place}.rs")),
        };
        let Ok(text) = fs::read_to_string(&file) else {
            return Some(format!("{test}: there is no {}", file.display()));
        };
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let Some(at) = lines.iter().position(|line| line.starts_with(&format!("fn {name}(")))
        else {
            return Some(format!("{test}: there is no such test"));
        };
        let attributes = lines[..at]
            .iter()
            .rev()
            .take_while(|line| line.starts_with("#[") || line.starts_with("//"));
        let attributes: Vec<_> = attributes.collect();
        let runs = attributes.iter().any(|line| **line == "#[test]") || text.contains("proptest!");
        let ignored = attributes.iter().any(|line| line.starts_with("#[ignore"));
        (!runs || ignored).then(|| format!("{test}: is ignored or no test"))
    }
}
