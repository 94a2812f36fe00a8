//! Sockets that a process outside of the session made: hooks follow the cgroup that made a socket, so whoever gets hold
//! of one has a road.

use std::mem::zeroed;

use super::{
    Attempt, Road, Target,
    sys::{To, connect, place, send, sendto, socket},
    system::unix_address,
};

/// How the names of attempts end that take a socket from another process over one that the session was started with.
pub const PASSED: &str = ", over standard error";
/// What asks for sockets there: no text has it.
pub(in crate::doctor) const GIVE: u8 = 0;

pub(super) fn attempts() -> Vec<Attempt> {
    let road = Road::Passed;
    vec![
        Attempt::sends(road, "inherited udp socket", |t| {
            sendto(t.inherited[0], t.marker(), 0, place(t, To::V4));
            sendto(t.inherited[0], t.marker(), 0, place(t, To::Loopback4));
        }),
        Attempt::sends(road, "inherited connection", |t| {
            send(t.inherited[1], t.marker(), 0);
        }),
        Attempt::sends(road, "any inherited socket", |t| {
            // Also those of numbers that nobody told.
            for fd in 3..256 {
                send(fd, t.marker(), libc::MSG_DONTWAIT);
            }
        }),
        Attempt::effect(road, "inherited io_uring", |_| (3..256).any(is_ring)),
        Attempt::sends(road, "socket given by another process", |t| given(t, false)),
        Attempt::sends(road, "socket given by another process, abstract", |t| given(t, true)),
        Attempt::sends(road, format!("udp socket{PASSED}"), |t| {
            let [udp, ..] = asked();
            sendto(udp, t.marker(), 0, place(t, To::V4));
            sendto(udp, t.marker(), 0, place(t, To::Loopback4));
        }),
        Attempt::sends(road, format!("connection{PASSED}"), |t| {
            send(asked()[1], t.marker(), 0);
        }),
        Attempt::sends(road, format!("tcp socket{PASSED}"), |t| {
            let [_, _, tcp] = asked();
            connect(tcp, place(t, To::V4));
            send(tcp, t.marker(), 0);
        }),
    ]
}

/// Whether a descriptor is a ring: its queue of requests, `IORING_OFF_SQES`, can be written to. Its kernel thread does
/// what is written there, in the name of whoever made the ring.
fn is_ring(fd: i32) -> bool {
    const QUEUE: i64 = 0x1000_0000;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping, at no place in particular, that nobody uses.
    let mapped = unsafe { libc::mmap(std::ptr::null_mut(), 64, access, libc::MAP_SHARED, fd, QUEUE) };
    mapped != libc::MAP_FAILED && is_named(fd, "io_uring")
}

fn is_named(fd: i32, name: &str) -> bool {
    std::fs::read_link(format!("/proc/self/fd/{fd}")).is_ok_and(|link| link.to_string_lossy().contains(name))
}

/// Connects to whoever gives sockets away, and sends through them.
fn given(target: &Target, is_abstract: bool) {
    let fd = socket(libc::AF_UNIX, libc::SOCK_STREAM, 0);
    if connect(fd, unix_address(&format!("{}/giver", target.unix), is_abstract)) != 0 {
        return;
    }
    let [udp, connection, _] = taken(fd);
    sendto(udp, target.marker(), 0, place(target, To::V4));
    sendto(udp, target.marker(), 0, place(target, To::Loopback4));
    send(connection, target.marker(), 0);
}

/// What is given to who asks for it on standard error. The answer takes a moment.
fn asked() -> [i32; 3] {
    let error = libc::STDERR_FILENO;
    let patience = libc::timeval { tv_sec: 1, tv_usec: 0 };
    // SAFETY: the value is valid for its length.
    unsafe {
        let size = size_of_val(&patience) as u32;
        libc::setsockopt(error, libc::SOL_SOCKET, libc::SO_RCVTIMEO, (&raw const patience).cast(), size);
    }
    send(error, &[GIVE], 0);
    taken(error)
}

/// The sockets in the next message: UDP, a TCP connection, and one of TCP that is not connected. Where there are none,
/// descriptors that nobody has.
fn taken(fd: i32) -> [i32; 3] {
    const NONE: [i32; 3] = [-1; 3];
    let mut byte = [0u8; 1];
    let mut piece = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    let mut control = [0usize; 8];
    // SAFETY: all zeros is a message of nothing.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: everything the message names lives until the call returns.
    if unsafe { libc::recvmsg(fd, &raw mut message, 0) } <= 0 {
        return NONE;
    }
    // SAFETY: the kernel filled in the message.
    let first = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: as above; a control message that is not null.
    if first.is_null()
        || unsafe { (*first).cmsg_len } < unsafe { libc::CMSG_LEN(size_of::<[i32; 3]>() as u32) } as usize
    {
        return NONE;
    }
    // SAFETY: a control message of three descriptors, as the giver sends it, and as long as that.
    unsafe { std::ptr::read_unaligned(libc::CMSG_DATA(first).cast::<[i32; 3]>()) }
}
