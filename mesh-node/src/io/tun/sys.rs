//! The syscalls that need `unsafe`: TUN ioctls, a read that does not block, waiting for a packet or for a wake-up, and
//! what a packet thread sets for itself. Nothing here decides.
#![expect(unsafe_code, reason = "the one file of this crate that talks to the kernel without a safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// linux/if_tun.h: the device may hand us packets with partial checksums.
pub(super) const TUN_F_CSUM: libc::c_uint = 0x01;
/// linux/if_tun.h: TCP superpackets, IPv4.
pub(super) const TUN_F_TSO4: libc::c_uint = 0x02;
/// linux/if_tun.h: TCP superpackets, IPv6.
pub(super) const TUN_F_TSO6: libc::c_uint = 0x04;
/// linux/if_tun.h: UDP superpackets, IPv4 (kernel 6.2 and later).
pub(super) const TUN_F_USO4: libc::c_uint = 0x20;
/// linux/if_tun.h: UDP superpackets, IPv6 (kernel 6.2 and later).
pub(super) const TUN_F_USO6: libc::c_uint = 0x40;

/// linux/if_tun.h: `_IOW('T', 208, unsigned int)`.
const TUNSETOFFLOAD: u32 = 0x4004_54d0;
/// linux/if_tun.h: `_IOW('T', 216, int)`.
const TUNSETVNETHDRSZ: u32 = 0x4004_54d8;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Takes over a descriptor that its former owner has let go of.
pub(super) fn own(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the caller got `fd` from `IntoRawFd`, so it is open and nobody else closes it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes `tun`, a fresh descriptor of /dev/net/tun, a queue of the device `name` with these flags (`IFF_...` of linux/if_tun.h). Gives
/// the name that the device has.
pub(super) fn attach(tun: &File, name: &str, flags: libc::c_int) -> io::Result<String> {
    // SAFETY: plain numbers, of which 0 is one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // the last byte stays 0
    let room = request.ifr_name.len() - 1;
    if name.len() > room || name.contains('\0') {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    request.ifr_name.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from as libc::c_char);
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the ioctl reads and writes one ifreq through the pointer, which is exclusively borrowed across the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    let given = request.ifr_name.iter().map(|byte| *byte as u8).take_while(|byte| *byte != 0);
    Ok(String::from_utf8_lossy(&given.collect::<Vec<_>>()).into_owned())
}

/// Sets the length of the header before each packet.
pub(super) fn set_vnet_header_size(tun: &File, size: usize) -> io::Result<()> {
    let size = size as libc::c_int;
    // SAFETY: the ioctl reads one int through the pointer, which lives across the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETVNETHDRSZ as _, &raw const size) }).map(drop)
}

/// Tells the kernel which unfinished packets we take.
pub(super) fn set_offload(tun: &File, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: the ioctl takes its argument by value and touches no memory of ours.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETOFFLOAD as _, libc::c_ulong::from(flags)) }).map(drop)
}

/// Reads one packet if there is one; `None` if there is not.
pub(super) fn read_now(tun: &File, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    let iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    loop {
        // SAFETY: the one iovec describes `buffer`, which is exclusively borrowed across the call. Offset -1 means
        // the file position, as for readv.
        let n = unsafe { libc::preadv2(tun.as_raw_fd(), &raw const iov, 1, -1, libc::RWF_NOWAIT) };
        if n >= 0 {
            return Ok(Some(n as usize));
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock => return Ok(None),
            _ => return Err(error),
        }
    }
}

/// A counter that a waiting thread can be woken with.
pub(crate) fn eventfd() -> io::Result<File> {
    // SAFETY: no memory is passed.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    Ok(File::from(own(fd)?))
}

/// Of the sockets that share a port (SO_REUSEPORT), the first receives all: for one that is not bound yet, and will be the first.
pub(crate) fn receive_by_first(socket: &impl AsRawFd) -> io::Result<()> {
    // linux/filter.h: BPF_RET | BPF_K, with the number of the socket
    let mut program = [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 }];
    let program = libc::sock_fprog { len: 1, filter: program.as_mut_ptr() };
    let len = size_of::<libc::sock_fprog>() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes of `program`, and the one instruction it points to; both live across the call.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            len,
        )
    })
    .map(drop)
}

/// Waits until `tun` has a packet (or an error), `wake` has been written, or `limit` is over. Says whether `wake` was
/// the reason.
pub(super) fn wait(tun: &File, wake: &File, limit: Option<Duration>) -> io::Result<bool> {
    let mut fds = [tun, wake].map(|f| libc::pollfd { fd: f.as_raw_fd(), events: libc::POLLIN, revents: 0 });
    let limit = limit.map(|d| libc::timespec {
        tv_sec: d.as_secs().min(3600) as libc::time_t,
        tv_nsec: libc::c_long::from(d.subsec_nanos() as i32),
    });
    let limit_ptr = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `fds` and `limit` live across the call and the count is that of `fds`; no signal mask is passed.
    let n = unsafe { libc::ppoll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, limit_ptr, std::ptr::null()) };
    match check(n) {
        Ok(_) => Ok(fds[1].revents != 0),
        Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(false),
        Err(e) => Err(e),
    }
}

/// Sets what a packet thread wants of the scheduler: the given niceness, and sleeps that end on time. Best effort:
/// without CAP_SYS_NICE the thread is slower under load, not wrong. Says whether both were granted.
pub(crate) fn prioritise_thread(nice: i32) -> bool {
    // SAFETY: neither call takes a pointer. On Linux a `who` of 0 means the calling thread alone (setpriority(2),
    // "C library/kernel differences").
    let (nice, slack) = unsafe {
        let nice = libc::setpriority(libc::PRIO_PROCESS, 0, nice);
        (nice, libc::prctl(libc::PR_SET_TIMERSLACK, TIMER_SLACK_NS, 0, 0, 0))
    };
    nice == 0 && slack == 0
}

/// Asks the scheduler for shorter turns of the calling thread, which is then let in earlier when it wakes (EEVDF, Linux 6.12); older
/// kernels take the call and ignore it. Needs no right.
pub(crate) fn short_turns(turn: Duration) -> io::Result<()> {
    // SAFETY: a `sched_attr` is plain numbers, for which zeros are a value.
    let mut attr: libc::sched_attr = unsafe { std::mem::zeroed() };
    attr.size = size_of::<libc::sched_attr>() as u32;
    attr.sched_policy = libc::SCHED_OTHER as u32;
    // SAFETY: no pointer is taken; 0 is the calling thread.
    attr.sched_nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    attr.sched_runtime = turn.as_nanos() as u64;
    // SAFETY: the kernel reads the `size` bytes of `attr`, which lives across the call; 0 is the calling thread.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Puts the calling thread before all that are not real-time (sched(7)), of those at the lowest priority. Needs CAP_SYS_NICE or a
/// RLIMIT_RTPRIO of 1.
pub(crate) fn realtime_thread() -> io::Result<()> {
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameter lives across the call; 0 is the calling thread.
    check(unsafe {
        libc::sched_setscheduler(0, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, &raw const lowest)
    })?;
    Ok(())
}

/// Default slack is 50 us, half of the longest moderation sleep.
const TIMER_SLACK_NS: libc::c_ulong = 1000;
