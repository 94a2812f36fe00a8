//! A frame by an XDP socket: linux/if_xdp.h. It goes from memory of ours to the device, past everything.

use std::mem::size_of_val;

use super::{
    Attempt, Road, Target,
    sys::{bind, device_number, option, sendto, socket, stored},
    system::broadcast,
};

/// Size of a frame's place, and how many there are.
const FRAME: u64 = 4096;
const FRAMES: u64 = 4;
/// Entries of each ring; a power of two.
const RING: u32 = 4;

pub(super) fn attempt() -> Attempt {
    Attempt::sends(Road::Families, "xdp frame", |target| {
        let _ = send(target);
    })
}

fn send(target: &Target) -> Option<()> {
    let fd = socket(libc::AF_XDP, libc::SOCK_RAW, 0);
    let memory = map(-1, FRAME * FRAMES, 0)?;
    let frame = broadcast(target);
    // SAFETY: the mapping is longer than any frame of ours.
    unsafe { std::ptr::copy_nonoverlapping(frame.as_ptr(), memory.cast::<u8>(), frame.len()) };
    // struct xdp_umem_reg: addr, len, chunk_size and headroom, flags and tx_metadata_len.
    let region: [u64; 4] = [memory as u64, FRAME * FRAMES, FRAME, 0];
    let region: Vec<u8> = region.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let size = RING.to_ne_bytes();
    for (name, value) in [
        (libc::XDP_UMEM_REG, region.as_slice()),
        (libc::XDP_UMEM_FILL_RING, &size),
        (libc::XDP_UMEM_COMPLETION_RING, &size),
        (libc::XDP_TX_RING, &size),
    ] {
        (option(fd, libc::SOL_XDP, name, value) == 0).then_some(())?;
    }
    // struct xdp_mmap_offsets: producer, consumer, descriptors and flags of the rings rx, tx, fill and completion.
    let mut offsets = [0u64; 16];
    let mut length = size_of_val(&offsets) as u32;
    // SAFETY: a valid place of this length.
    unsafe {
        libc::getsockopt(fd, libc::SOL_XDP, libc::XDP_MMAP_OFFSETS, offsets.as_mut_ptr().cast(), &raw mut length)
    };
    let [_, _, _, _, producer, _, descriptors, ..] = offsets;
    let ring = map(fd, descriptors + u64::from(RING) * 16, libc::XDP_PGOFF_TX_RING)?.cast::<u8>();
    // struct sockaddr_xdp: family, flags (XDP_COPY), device, queue, shared memory.
    let mut address = [0u8; 16];
    address[..2].copy_from_slice(&(libc::AF_XDP as u16).to_ne_bytes());
    address[2..4].copy_from_slice(&libc::XDP_COPY.to_ne_bytes());
    address[4..8].copy_from_slice(&device_number(&target.device).to_ne_bytes());
    (bind(fd, stored(&address)) == 0).then_some(())?;
    // SAFETY: both places are in the mapping, where the kernel says that they are, and aligned.
    unsafe {
        // struct xdp_desc: addr, len, options.
        let descriptor = ring.add(usize::try_from(descriptors).ok()?).cast::<u64>();
        descriptor.write_volatile(0);
        descriptor.add(1).cast::<u32>().write_volatile(frame.len() as u32);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        ring.add(usize::try_from(producer).ok()?).cast::<u32>().write_volatile(1);
    }
    // The kick.
    sendto(fd, &[], libc::MSG_DONTWAIT, (stored(&0u16).0, 0));
    // SAFETY: a plain system call: time for the device to take it.
    unsafe { libc::usleep(20_000) };
    Some(())
}

/// Memory that is shared with the kernel: of its own, or of a socket.
fn map(fd: i32, length: u64, offset: i64) -> Option<*mut libc::c_void> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let kind = if fd < 0 { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS } else { libc::MAP_SHARED };
    let length = usize::try_from(length).ok()?;
    // SAFETY: a new mapping, at no place in particular.
    let place = unsafe { libc::mmap(std::ptr::null_mut(), length, access, kind | libc::MAP_POPULATE, fd, offset) };
    (place != libc::MAP_FAILED).then_some(place)
}
