//! The lists of what PostgreSQL itself has, against the catalogue of the server that is installed.

use std::collections::BTreeSet;

use crate::server;

/// Each list with its query, in the order in which they depend on each other.
const LISTS: [(&str, &str, &str); 5] = [
    ("keywords", include_str!("../../agent/src/sql/keywords.sql"), include_str!("../../agent/src/sql/keywords.txt")),
    ("functions", include_str!("../../agent/src/sql/functions.sql"), include_str!("../../agent/src/sql/functions.txt")),
    ("types", include_str!("../../agent/src/sql/types.sql"), include_str!("../../agent/src/sql/types.txt")),
    ("operators", include_str!("../../agent/src/sql/operators.sql"), include_str!("../../agent/src/sql/operators.txt")),
    (
        "attributes",
        include_str!("../../agent/src/sql/attributes.sql"),
        include_str!("../../agent/src/sql/attributes.txt"),
    ),
];

/// The catalogue that the lists are of.
const MAJOR: &str = "15";

#[test]
fn lists_are_the_catalogues() {
    let server = server();
    let reviewed = LISTS[1].2.replace('\'', "''");
    let same = server.sql("postgres", "show server_version_num").unwrap().starts_with(MAJOR);
    for (name, query, list) in LISTS {
        let query = query.replace(":'reviewed'", &format!("'{reviewed}'"));
        let made = server.sql("postgres", &query).unwrap();
        let (made, list): (BTreeSet<&str>, BTreeSet<&str>) = (made.lines().collect(), list.lines().collect());
        assert!(list.len() > 50, "{name}");
        let (gone, new): (Vec<_>, Vec<_>) = (list.difference(&made).collect(), made.difference(&list).collect());
        let remedy = "run `cargo xtask functions` and review what it changes";
        assert!(!same || (gone.is_empty() && new.is_empty()), "{name}: gone {gone:?}, new {new:?}: {remedy}");
    }
    // Whatever the version: what is let pass must not have become what is not harmless.
    let present = "select distinct proname from pg_proc where pronamespace = 'pg_catalog'::regnamespace";
    let present = server.sql("postgres", present).unwrap();
    let harmless = server.sql("postgres", LISTS[1].1).unwrap();
    let harmless: BTreeSet<&str> = harmless.lines().collect();
    let reviewed: BTreeSet<&str> = LISTS[1].2.lines().collect();
    let worse: Vec<&str> = present.lines().filter(|name| reviewed.contains(name) && !harmless.contains(name)).collect();
    assert!(worse.is_empty(), "no longer harmless: {worse:?}");
}
