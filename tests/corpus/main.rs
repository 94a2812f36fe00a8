//! The seeds of the fuzz targets, and simple changes to them, as a plain test: what a fuzzer found once stays found.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../fuzz/oracle.rs"]
mod oracle;

use std::{fs, path::Path};

use portcullis::{
    action, mask, policy,
    protocol::{self, postgres::fuzz},
    record, sql,
};

/// Runs a target on each of its seeds, on each of their beginnings, and with bytes changed.
fn run(name: &str, target: impl Fn(&[u8])) {
    let folder = Path::new("fuzz/seeds").join(name);
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    for entry in fs::read_dir(&folder).unwrap() {
        seeds.push(fs::read(entry.unwrap().path()).unwrap());
    }
    assert!(seeds.len() > 5, "{} has no seeds", folder.display());
    // The same numbers each time: a failure can be repeated.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut number = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below.max(1)
    };
    for seed in &seeds {
        target(seed);
        for n in 0..seed.len().min(300) {
            target(&seed[..n]);
        }
        for _ in 0..100 {
            let other = &seeds[number(seeds.len())];
            let mut changed = seed[..number(seed.len() + 1)].to_vec();
            changed.extend_from_slice(&other[number(other.len() + 1)..]);
            for _ in 0..number(4) {
                let at = number(changed.len());
                if let Some(byte) = changed.get_mut(at) {
                    *byte ^= 1 << number(8);
                }
            }
            target(&changed);
        }
    }
}

#[test]
fn ask() {
    run("ask", protocol::llm::fuzz::request);
}

#[test]
fn answer() {
    run("answer", protocol::llm::fuzz::answer);
}

#[test]
fn frames() {
    run("frames", fuzz::frames);
}

#[test]
fn startup() {
    run("startup", fuzz::startup);
}

#[test]
fn copy() {
    run("copy", fuzz::copy);
}

#[test]
fn row() {
    run("row", fuzz::row);
}

#[test]
fn sql_text() {
    run("sql", |data| sql::fuzz::classification(&String::from_utf8_lossy(data)));
}

#[test]
fn lineage() {
    run("lineage", |data| sql::fuzz::lineage(&String::from_utf8_lossy(data)));
}

#[test]
fn policy_file() {
    run("policy", |data| policy::fuzz::policy(&String::from_utf8_lossy(data)));
}

#[test]
fn scrub() {
    run("scrub", mask::fuzz::scrub);
}

#[test]
fn json() {
    run("json", mask::fuzz::json);
}

#[test]
fn http() {
    run("http", protocol::http::fuzz::http);
}

#[test]
fn protobuf() {
    run("protobuf", protocol::http::fuzz::protobuf);
}

#[test]
fn websocket() {
    run("websocket", oracle::websocket);
}

#[test]
fn glob() {
    run("glob", |data| action::glob::fuzz::glob(&String::from_utf8_lossy(data)));
}

#[test]
fn path() {
    run("path", |data| fuzz::path(&String::from_utf8_lossy(data)));
}

#[test]
fn event() {
    run("event", record::fuzz::event);
}

/// A target that no test here runs would keep nothing that it found.
#[test]
fn every_target_has_its_seeds_run() {
    let source = fs::read_to_string("corpus/main.rs").unwrap();
    let mut targets = 0;
    for entry in fs::read_dir("fuzz/targets").unwrap() {
        let name = entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned();
        assert!(source.contains(&format!("run(\"{name}\"")), "no test runs the seeds of {name}");
        targets += 1;
    }
    assert!(targets >= 10, "{targets} targets");
}
