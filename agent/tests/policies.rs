//! The example policies load, their decision cases hold, and their masks compile.

use std::path::PathBuf;

use portcullis::{
    action::{Action, ProtocolId},
    mask::MaskSet,
    policy::{PolicySet, UpstreamSpec, cases::Cases},
    protocol::{http, llm},
    sql::{self, fuzz::Fixed},
};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../policies")
}

fn classify(upstream: &UpstreamSpec, command: &str) -> Action {
    match upstream.protocol {
        ProtocolId::Http => http::classify(command, &upstream.routes),
        ProtocolId::Llm => llm::classify(command, &upstream.routes),
        _ => sql::classify(command, &Fixed).action,
    }
}

#[test]
fn examples_decide_as_their_cases_say() {
    let set = PolicySet::load(&folder()).unwrap_or_else(|e| panic!("{:#?}", e.lines().collect::<Vec<_>>()));
    assert_eq!(set.policies().len(), 7);
    let mut failures = String::new();
    for policy in set.policies() {
        let path = Cases::path_for(policy.file().as_ref());
        let report = Cases::load(&path)
            .and_then(|cases| cases.run(policy, classify))
            .unwrap_or_else(|e| panic!("{:#?}", e.lines().collect::<Vec<_>>()));
        assert!(report.results.len() > 5, "{}: too few cases", path.display());
        if report.failed() > 0 {
            failures += &format!("{report}\n");
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn masks_of_examples_hide_their_columns() {
    let set = PolicySet::load(&folder()).expect("valid");
    let masks = |workload: &str, upstream: &str| {
        let policy = set.by_workload(workload).expect("there");
        MaskSet::compile(policy.masks(upstream), [0; 32]).expect("valid masks")
    };
    let support = masks("support-bot", "orders");
    for (schema, table, column, hidden) in [
        ("public", "customers", "email", true),
        ("public", "orders", "email", false),
        ("public", "staff", "ssn", true),
        ("any", "Odd.table", "ssn", true),
        ("public", "customers", "id", false),
    ] {
        assert_eq!(support.column(schema, table, column).is_some(), hidden, "{schema}.{table}.{column}");
    }
    let analyst = masks("analyst", "warehouse");
    assert!(analyst.column("reporting", "sales", "customer_name").is_some());
    assert!(analyst.column("public", "sales", "customer_name").is_none());
    assert!(analyst.has_detectors() && support.has_detectors());
}
