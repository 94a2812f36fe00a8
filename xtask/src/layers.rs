//! The import order of the agent's modules, and the size of its files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::shell;

/// Modules by row: one may import only from rows above its own.
const ROWS: &[&[&str]] = &[
    &["action", "wire"],
    &["sql", "policy", "mask"],
    &["secrets", "hold", "record", "identity"],
    &["session"],
    &["protocol"],
    &["net", "bpf"],
    &["config", "control", "launch", "doctor", "app"],
];

/// Lines of production code beyond which a file gives a reason in its module doc.
const LINES: usize = 550;

fn row(module: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.contains(&module))
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("the agent's sources").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn is_test(path: &Path) -> bool {
    path.components().any(|c| matches!(c.as_os_str().to_str(), Some("tests" | "tests.rs")))
}

/// Production files with their module and text, up to the first `#[cfg(test)]` module with a body.
fn production() -> Vec<(PathBuf, String, String)> {
    let src = shell::root().join("agent/src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    files
        .into_iter()
        .filter(|path| !is_test(path))
        .filter_map(|path| {
            let relative = path.strip_prefix(&src).ok()?.to_owned();
            let module = relative.components().next()?.as_os_str().to_str()?.trim_end_matches(".rs").to_owned();
            let text = fs::read_to_string(&path).ok()?;
            let text = text.split("#[cfg(test)]\nmod tests {").next()?.to_owned();
            Some((relative, module, text))
        })
        .collect()
}

/// The first segments of every `crate::` path: `crate::wire::X`, `crate::{wire::X, hold::Y}`.
fn imports(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut start = true;
            let mut word = String::new();
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => start = true,
                    c if depth == 0 && start && (c.is_alphanumeric() || c == '_') => word.push(c),
                    _ => {
                        if !word.is_empty() {
                            found.push(std::mem::take(&mut word));
                            start = false;
                        }
                    }
                }
            }
            found.extend((!word.is_empty()).then_some(word));
        } else {
            found.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    found
}

#[test]
fn modules_import_only_from_rows_above() {
    let mut wrong = Vec::new();
    for (path, module, text) in production() {
        let Some(own) = row(&module) else { continue };
        for import in imports(&text) {
            if let Some(other) = row(&import)
                && (other > own || (other == own && import != module))
                // Row 7 is the wiring: its modules use one another.
                && own + 1 < ROWS.len()
            {
                wrong.push(format!("{} imports {import}", path.display()));
            }
        }
        if module == "protocol" && imports(&text).iter().any(|i| matches!(i.as_str(), "net" | "bpf")) {
            wrong.push(format!("{}: a protocol imports the network", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn grouped_imports_are_seen() {
    assert_eq!(imports("use crate::{a::{b, c}, d::E,\n f};\nlet x = crate::g::h();"), ["a", "d", "f", "g"]);
}

#[test]
fn files_stay_readable() {
    let long: Vec<_> = production()
        .into_iter()
        .filter(|(_, _, text)| text.lines().count() > LINES && !text.contains("//! Long because"))
        .map(|(path, _, text)| format!("{}: {} lines", path.display(), text.lines().count()))
        .collect();
    assert!(long.is_empty(), "split these, or say `//! Long because ...` in their module doc: {long:#?}");
}
