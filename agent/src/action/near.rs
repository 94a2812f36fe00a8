//! Names that every thread uses, with a reference count for each.

use std::{cell::RefCell, sync::Arc};

/// Names that a thread keeps at hand.
const KEPT: usize = 32;

/// The same name with a reference count that only this thread changes: where all of them change one, processors wait for each
/// other, and for whatever lies beside it.
pub fn near(name: &Arc<str>) -> Arc<str> {
    thread_local! {
        static NEAR: RefCell<Vec<[Arc<str>; 2]>> = const { RefCell::new(Vec::new()) };
    }
    NEAR.with_borrow_mut(|near| {
        // What is kept cannot be given up meanwhile, so nothing else is at its place.
        if let Some([_, own]) = near.iter().find(|[of, _]| Arc::ptr_eq(of, name)) {
            return Arc::clone(own);
        }
        if near.len() >= KEPT {
            near.clear();
        }
        let own: Arc<str> = Arc::from(&**name);
        near.push([Arc::clone(name), Arc::clone(&own)]);
        own
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_what_it_is_and_is_counted_apart() {
        let names: Vec<Arc<str>> = (0..2 * KEPT).map(|i| format!("rule {i}").into()).collect();
        for _ in 0..2 {
            for name in &names {
                let own = near(name);
                assert_eq!(own, *name);
                assert!(!Arc::ptr_eq(&own, name) && Arc::ptr_eq(&own, &near(name)));
            }
        }
        assert!(names.iter().all(|name| Arc::strong_count(name) <= 2), "each is kept once at most");
    }
}
