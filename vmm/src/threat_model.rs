#![doc = include_str!("threat_model.md")]

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::{Path, PathBuf};

    /// Text of all files below a folder.
    fn sources(folder: &Path, into: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, into);
            } else if let Ok(text) = fs::read_to_string(&path) {
                into.push((path, text));
            }
        }
    }

    /// What the table names as `KIND`.
    fn named(kind: &str) -> BTreeSet<&'static str> {
        let table = include_str!("threat_model.md").split("# Claims").nth(1).unwrap();
        let before = format!("{kind} `");
        let mut parts = table.split(before.as_str());
        parts.next();
        parts.map(|part| part.split_once('`').unwrap().0).filter(|name| !name.contains(' ')).collect()
    }

    #[test]
    fn what_the_table_names_is_there() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        if !root.join("src").exists() {
            println!("no sources here");
            return;
        }
        let mut files = Vec::new();
        for folder in ["src", "tests"] {
            sources(&root.join(folder), &mut files);
        }
        let attacks = named("attack");
        assert!(attacks.len() > 40, "{attacks:?}");
        let catalogue = fs::read_to_string(root.join("src/cli/attack/catalogue.rs")).unwrap();
        for attack in attacks {
            assert!(catalogue.contains(&format!("\"{attack}\"")), "there is no attack {attack}");
        }
        let tests = named("test");
        assert!(tests.len() > 40, "{tests:?}");
        for test in tests {
            let is_there = |(_, text): &(PathBuf, String)| {
                // After its attribute, or in proptest's macro.
                text.match_indices(&format!("fn {test}(")).any(|(at, _)| {
                    let before = &text[at.saturating_sub(60)..at];
                    before.contains("#[test]") || before.contains("#![proptest_config")
                })
            };
            assert!(files.iter().any(is_there), "there is no test {test}");
        }
        let fuzzers = named("fuzzer");
        assert!(fuzzers.len() > 4, "{fuzzers:?}");
        for fuzzer in &fuzzers {
            let path = root.join(format!("../fuzz/targets/{fuzzer}.rs"));
            assert!(path.exists(), "there is no fuzzer {fuzzer}");
        }
        for target in fs::read_dir(root.join("../fuzz/targets")).unwrap() {
            let target = target.unwrap().path();
            let name = target.file_stem().unwrap().to_str().unwrap();
            assert!(fuzzers.contains(name), "the table leaves out the fuzzer {name}");
        }
    }
}
