//! Where a field of one of the running kernel's structures lies, from its own type information (BTF,
//! Documentation/bpf/btf.rst of the kernel).

/// Byte order and version of what is read: that of the host, 1.
const MAGIC: u16 = 0xeb9f;
const VERSION: u8 = 1;
const KIND_STRUCT: u32 = 4;

/// Where some fields of a structure lie, in bytes from its start. `None` where the information is not as documented, has
/// no such structure, or one of the fields is absent or not at a whole byte.
pub(super) fn offsets<const N: usize>(btf: &[u8], structure: &str, fields: [&str; N]) -> Option<[u32; N]> {
    let mut header = Cursor(btf);
    let magic = u16::from_ne_bytes(header.take(2)?.try_into().ok()?);
    if magic != MAGIC || header.take(1)? != [VERSION] {
        return None;
    }
    header.take(1)?;
    let [header_bytes, types_at, types_bytes, strings_at, strings_bytes] = header.words()?;
    let section = |at: u32, bytes: u32| {
        let start = (header_bytes as usize).checked_add(at as usize)?;
        btf.get(start..start.checked_add(bytes as usize)?)
    };
    let names = section(strings_at, strings_bytes)?;
    let mut types = Cursor(section(types_at, types_bytes)?);
    while !types.0.is_empty() {
        let [name, info, _] = types.words()?;
        let kind = info >> 24 & 0x1f;
        let details = types.take(details_bytes(kind, info & 0xffff)?)?;
        if kind == KIND_STRUCT && name_at(names, name)? == structure.as_bytes() {
            let has_bit_fields = info >> 31 == 1;
            let mut found = [None; N];
            let mut members = Cursor(details);
            while !members.0.is_empty() {
                let [name, _, bits] = members.words()?;
                // With bit fields, the upper byte is a field's width: 0 for an ordinary one.
                let width = if has_bit_fields { bits >> 24 } else { 0 };
                if let Some(place) = fields.iter().position(|f| Some(f.as_bytes()) == name_at(names, name)) {
                    found[place] = (width == 0 && bits.is_multiple_of(8)).then_some(bits / 8);
                }
            }
            let mut all = [0; N];
            for (place, found) in all.iter_mut().zip(found) {
                *place = found?;
            }
            return Some(all);
        }
    }
    None
}

/// How many bytes come after the three words that every type begins with.
fn details_bytes(kind: u32, count: u32) -> Option<usize> {
    let each = |bytes: usize| bytes * count as usize;
    Some(match kind {
        // Pointer, forward, typedef, volatile, const, restrict, function, float, type tag.
        2 | 7..=12 | 16 | 18 => 0,
        // Integer, variable, declaration tag.
        1 | 14 | 17 => 4,
        // Array.
        3 => 12,
        // Structure, union, section, 64-bit enumeration.
        KIND_STRUCT | 5 | 15 | 19 => each(12),
        // Enumeration, prototype.
        6 | 13 => each(8),
        _ => return None,
    })
}

fn name_at(names: &[u8], at: u32) -> Option<&[u8]> {
    names.get(at as usize..)?.split(|byte| *byte == 0).next()
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn words<const N: usize>(&mut self) -> Option<[u32; N]> {
        let bytes = self.take(4 * N)?;
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes(bytes.try_into().ok()?);
        }
        Some(words)
    }
}
