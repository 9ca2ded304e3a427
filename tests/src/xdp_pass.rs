//! The smallest XDP program, for the switch's side of a leg.
//!
//! NAPI there (GRO) lets a host's XDP program transmit, but for `XDP_TX` the kernel's veth driver
//! rings the peer's bell only if the peer has an XDP program itself: without one, frames lie in
//! the peer's ring until something else wakes it. Two instructions are enough: `r0 = XDP_PASS;
//! exit`. They are loaded by hand, as a library of its own would be much for them.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::libc;

use crate::netns::Netns;
use crate::sweep;

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_PROG_TYPE_XDP: u32 = 6;
/// For devices with a large MTU, kernel 5.18.
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;

static PASS: [u64; 2] = [
    u64::from_le_bytes([0xb7, 0, 0, 0, 2, 0, 0, 0]),
    u64::from_le_bytes([0x95, 0, 0, 0, 0, 0, 0, 0]),
];

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// The same for `BPF_OBJ_PIN`.
#[repr(C)]
struct ObjPin {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<i32> {
    // SAFETY: `attributes` is a prefix of `union bpf_attr` of the size that is given (the kernel
    // takes the rest as zero), and the addresses in it are of data that outlives the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>())
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        i32::try_from(result).map_err(io::Error::other)
    }
}

fn load(flags: u32) -> io::Result<OwnedFd> {
    let license = c"GPL";
    let fd = bpf(
        BPF_PROG_LOAD,
        &ProgLoad {
            prog_type: BPF_PROG_TYPE_XDP,
            insn_cnt: u32::try_from(PASS.len()).map_err(io::Error::other)?,
            insns: PASS.as_ptr() as u64,
            license: license.as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log_buf: 0,
            kern_version: 0,
            prog_flags: flags,
        },
    )?;
    // SAFETY: the kernel just returned this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn pin(path: &Path) -> io::Result<()> {
    let program = load(BPF_F_XDP_HAS_FRAGS).or_else(|_| load(0))?;
    let name = CString::new(path.as_os_str().as_bytes())?;
    let bpf_fd = u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?;
    bpf(BPF_OBJ_PIN, &ObjPin { pathname: name.as_ptr() as u64, bpf_fd, file_flags: 0 })?;
    Ok(())
}

impl Netns {
    /// Attaches a native XDP program that passes everything, for the life of the device.
    #[track_caller]
    pub fn xdp_pass(&self, device: &str) {
        let _creating = sweep::creating();
        let dir = sweep::unique_pin_path();
        let path = dir.join("pass");
        if let Err(error) = fs::create_dir(&dir).and_then(|()| pin(&path)) {
            panic!("pin an XDP program at {}: {error}", path.display());
        }
        // By bpftool: iproute2 leaves directories of its own in the BPF file system.
        self.exec(&format!("bpftool net attach xdpdrv pinned {} dev {device}", path.display()));
        // The device keeps the program.
        let _ = fs::remove_dir_all(&dir);
    }
}
