use super::{fuzz::Fixed, *};

fn parts(sql: &str) -> String {
    let c = classify(sql, &Fixed);
    let mut out: Vec<String> = c.action.parts.iter().map(|(v, t)| format!("{v} {t}")).collect();
    out.sort();
    format!("{:?}: {}", c.action.clarity, out.join(", "))
}

#[test]
fn first_parts() {
    assert_eq!(parts("select a from orders"), "Parsed: read public.orders");
}
