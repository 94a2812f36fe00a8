//! Names that every thread uses, with a reference count for each.

use std::{cell::RefCell, sync::Arc};

/// Names that a thread keeps at hand, at most.
const KEPT: usize = 128;

/// A shared name, and the thread's own.
type Pair = [Arc<str>; 2];

/// The same name with a reference count that only this thread changes: where all of them change one, processors wait for each
/// other, and for whatever lies beside it. A thread allocates for a name when it meets it, and rarely again.
#[inline]
pub fn near(name: &Arc<str>) -> Arc<str> {
    thread_local! {
        static NEAR: RefCell<[Option<Pair>; KEPT]> = const { RefCell::new([const { None }; KEPT]) };
    }
    NEAR.with_borrow_mut(|near| {
        let place = &mut near[Arc::as_ptr(name).addr() / align_of::<u128>() % KEPT];
        match place {
            // What is kept cannot be given up meanwhile, so nothing else is at its address.
            Some([of, own]) if Arc::ptr_eq(of, name) => Arc::clone(own),
            _ => keep(place, name),
        }
    })
}

#[cold]
fn keep(place: &mut Option<Pair>, name: &Arc<str>) -> Arc<str> {
    let own: Arc<str> = Arc::from(&**name);
    *place = Some([Arc::clone(name), Arc::clone(&own)]);
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_what_it_is_and_is_counted_apart() {
        let names: Vec<Arc<str>> = (0..4 * KEPT).map(|i| format!("rule {i}").into()).collect();
        for _ in 0..2 {
            for name in &names {
                let own = near(name);
                assert_eq!(own, *name);
                assert!(!Arc::ptr_eq(&own, name) && Arc::ptr_eq(&own, &near(name)));
            }
        }
        assert!(names.iter().all(|name| Arc::strong_count(name) <= 2), "each is kept once at most");
        assert!(names.iter().filter(|name| Arc::strong_count(name) == 2).count() <= KEPT);
    }
}
