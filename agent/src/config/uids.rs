//! A range of user ids, `59000-59999`.

use serde::Deserialize;

/// Below it are the host's own users, on every distribution.
const FIRST: u32 = 1000;
/// `nobody`, by whatever name, and the 16-bit "no user"; the 32-bit one is no `u32` that is left below.
const NEVER: [u32; 2] = [65_534, 65_535];
/// More would be looked through at each start of a session.
const MOST: u32 = 100_000;

/// User ids from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct UidRange {
    /// The first.
    pub first: u32,
    /// The last; not below the first.
    pub last: u32,
}

impl UidRange {
    /// Whether it is one of them.
    pub fn has(self, uid: u32) -> bool {
        (self.first..=self.last).contains(&uid)
    }

    /// All of them, beginning behind `last`.
    pub fn after(self, last: Option<u32>) -> impl Iterator<Item = u32> {
        let start = last.and_then(|last| last.checked_add(1)).filter(|next| (self.first..=self.last).contains(next));
        let start = start.unwrap_or(self.first);
        (start..=self.last).chain(self.first..start)
    }
}

impl TryFrom<String> for UidRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = |why: &str| format!("`{text}` {why}, such as `59000-59999`");
        let number = |text: &str| text.trim().parse::<u32>().ok();
        let ends = text.split_once('-').and_then(|(first, last)| Some((number(first)?, number(last)?)));
        let Some((first, last)) = ends else { return Err(wrong("is not a range of user ids")) };
        if first > last {
            return Err(wrong("ends before it begins"));
        }
        if first < FIRST || last == u32::MAX || NEVER.iter().any(|uid| (first..=last).contains(uid)) {
            return Err(wrong("has ids that are the host's own: below 1000, 65534, 65535 or 4294967295"));
        }
        if last - first >= MOST {
            return Err(wrong("has more than 100000 ids"));
        }
        Ok(Self { first, last })
    }
}
