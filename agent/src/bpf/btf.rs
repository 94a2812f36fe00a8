//! Where a field of one of the running kernel's structures lies, from its own type information (BTF,
//! Documentation/bpf/btf.rst of the kernel).

/// Byte order and version of what is read: that of the host, 1.
const MAGIC: u16 = 0xeb9f;
const VERSION: u8 = 1;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
/// How deep structures without a name may lie in one another.
const DEPTH: u32 = 8;

/// Where some fields of a structure lie, in bytes from its start. `None` where the information is not as documented, has
/// no such structure, or one of the fields is absent or not at a whole byte.
pub(super) fn offsets<const N: usize>(btf: &[u8], structure: &str, fields: [&str; N]) -> Option<[u32; N]> {
    Types::read(btf)?.offsets(structure, fields)
}

/// The type information of a kernel.
pub(super) struct Types<'a> {
    names: &'a [u8],
    /// In order of their numbers, which begin at 1.
    all: Vec<Type<'a>>,
}

#[derive(Clone, Copy)]
struct Type<'a> {
    name: u32,
    info: u32,
    details: &'a [u8],
}

impl Type<'_> {
    fn kind(&self) -> u32 {
        self.info >> 24 & 0x1f
    }
}

impl<'a> Types<'a> {
    /// `None` where it is not as documented.
    pub(super) fn read(btf: &'a [u8]) -> Option<Self> {
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
        let mut all = Vec::new();
        while !types.0.is_empty() {
            let [name, info, _] = types.words()?;
            let details = types.take(details_bytes(info >> 24 & 0x1f, info & 0xffff)?)?;
            all.push(Type { name, info, details });
        }
        Some(Self { names, all })
    }

    /// Where some fields of a structure lie, also those in unions and structures of it that have no name, in bytes from
    /// its start. `None` where there is no such structure, or one of the fields is absent or not at a whole byte.
    pub(super) fn offsets<const N: usize>(&self, structure: &str, fields: [&str; N]) -> Option<[u32; N]> {
        let named = |t: &&Type<'_>| t.kind() == KIND_STRUCT && self.is_named(t.name, structure);
        let found = self.all.iter().find(named)?;
        let mut bits = [None; N];
        self.collect(found, 0, &fields, &mut bits, DEPTH)?;
        let mut all = [0; N];
        for (place, bits) in all.iter_mut().zip(bits) {
            *place = bits.filter(|bits| bits.is_multiple_of(8))? / 8;
        }
        Some(all)
    }

    fn collect(
        &self,
        within: &Type<'_>,
        base: u32,
        fields: &[&str],
        found: &mut [Option<u32>],
        depth: u32,
    ) -> Option<()> {
        let has_bit_fields = within.info >> 31 == 1;
        let mut members = Cursor(within.details);
        while !members.0.is_empty() {
            let [name, kind, place] = members.words()?;
            // With bit fields, the upper byte is a field's width: 0 for an ordinary one.
            let (width, bits) = if has_bit_fields { (place >> 24, place & 0x00ff_ffff) } else { (0, place) };
            let bits = base.checked_add(bits)?;
            if self.is_named(name, "") {
                let inner = (kind as usize).checked_sub(1).and_then(|place| self.all.get(place));
                if let Some(inner) = inner.filter(|t| matches!(t.kind(), KIND_STRUCT | KIND_UNION)) {
                    self.collect(inner, bits, fields, found, depth.checked_sub(1)?)?;
                }
            } else if let Some(place) = fields.iter().position(|field| self.is_named(name, field)) {
                *found.get_mut(place)? = (width == 0).then_some(bits);
            }
        }
        Some(())
    }

    fn is_named(&self, at: u32, name: &str) -> bool {
        let name = name.as_bytes();
        self.names.get(at as usize..).is_some_and(|rest| rest.starts_with(name) && rest.get(name.len()) == Some(&0))
    }
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
        KIND_STRUCT | KIND_UNION | 15 | 19 => each(12),
        // Enumeration, prototype.
        6 | 13 => each(8),
        _ => return None,
    })
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
