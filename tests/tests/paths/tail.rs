//! A tc program of somebody else: it counts UDP packets of both families and passes them on.
//!
//! Written by hand, as the library that loads the programs under test takes no bare instructions.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use lbxdp_tests::{Netns, sweep};
use nix::libc;
use nix::net::if_::if_nametoindex;

const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const PROG_LOAD: libc::c_long = 5;
const OBJ_PIN: libc::c_long = 6;
const PROG_ATTACH: libc::c_long = 8;

const PROG_TYPE_SCHED_CLS: u32 = 3;
const MAP_TYPE_ARRAY: u32 = 2;

/// `BPF_TCX_INGRESS`; egress is the next one. Linux 6.6.
const TCX_INGRESS: u32 = 46;

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Ingress,
    Egress,
}

/// A loaded program and its count.
pub struct Counter {
    map: OwnedFd,
    program: OwnedFd,
}

fn bpf<const N: usize>(command: libc::c_long, attributes: &[u32; N]) -> io::Result<i32> {
    // SAFETY: the words are a prefix of `union bpf_attr` of the size that is given, and the
    // addresses in them are of data that outlives the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes))
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        i32::try_from(result).map_err(io::Error::other)
    }
}

fn open<const N: usize>(command: libc::c_long, attributes: &[u32; N]) -> OwnedFd {
    let fd = bpf(command, attributes).unwrap_or_else(|error| panic!("bpf {command}: {error}"));
    // SAFETY: the kernel just returned this descriptor, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn raw(fd: &OwnedFd) -> u32 {
    u32::try_from(fd.as_raw_fd()).expect("descriptors are positive")
}

/// Both words of an address.
fn address<T>(of: *const T) -> [u32; 2] {
    let bytes = (of.cast::<()>() as u64).to_ne_bytes();
    let [a, b, c, d, e, f, g, h] = bytes;
    [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])]
}

/// One instruction: code, destination and source register, offset, immediate value.
fn instruction(code: u8, dst: u8, src: u8, offset: i16, value: u32) -> [u8; 8] {
    let [o, p] = offset.to_le_bytes();
    let [v, w, x, y] = value.to_le_bytes();
    [code, src << 4 | dst, o, p, v, w, x, y]
}

fn program(map: &OwnedFd) -> Vec<[u8; 8]> {
    let i = instruction;
    vec![
        i(0xbf, 6, 1, 0, 0),      //  0  r6 = r1, where loads from the packet look for it
        i(0x28, 0, 0, 0, 12),     //  1  r0 = EtherType
        i(0x15, 0, 0, 2, 0x0800), //  2  if IPv4 goto 5
        i(0x15, 0, 0, 3, 0x86dd), //  3  if IPv6 goto 7
        i(0x05, 0, 0, 13, 0),     //  4  goto 18
        i(0x30, 0, 0, 0, 23),     //  5  r0 = protocol
        i(0x05, 0, 0, 1, 0),      //  6  goto 8
        i(0x30, 0, 0, 0, 20),     //  7  r0 = next header
        i(0x55, 0, 0, 9, 17),     //  8  if not UDP goto 18
        i(0x62, 10, 0, -4, 0),    //  9  *(u32 *)(fp - 4) = 0
        i(0xbf, 2, 10, 0, 0),     // 10  r2 = fp
        i(0x07, 2, 0, 0, u32::MAX - 3), // 11  r2 -= 4
        i(0x18, 1, 1, 0, raw(map)), // 12  r1 = map
        i(0x00, 0, 0, 0, 0),      // 13
        i(0x85, 0, 0, 0, 1),      // 14  r0 = bpf_map_lookup_elem(r1, r2)
        i(0x15, 0, 0, 2, 0),      // 15  if none goto 18
        i(0xb7, 1, 0, 0, 1),      // 16  r1 = 1
        i(0xdb, 0, 1, 0, 0),      // 17  atomic *(u64 *)r0 += r1
        i(0xb7, 0, 0, 0, u32::MAX), // 18  r0 = TCX_NEXT
        i(0x95, 0, 0, 0, 0),      // 19  exit
    ]
}

impl Counter {
    /// Loads it.
    #[track_caller]
    pub fn new() -> Self {
        // Type, key size, value size, entries.
        let map = open(MAP_CREATE, &[MAP_TYPE_ARRAY, 4, 8, 1]);
        let code = program(&map);
        let [code_low, code_high] = address(code.as_ptr());
        let [license_low, license_high] = address(c"GPL".as_ptr());
        let count = u32::try_from(code.len()).expect("few");
        // Type, instructions, where they are, the licence.
        let program = open(
            PROG_LOAD,
            &[PROG_TYPE_SCHED_CLS, count, code_low, code_high, license_low, license_high],
        );
        Self { map, program }
    }

    /// Attaches it by tcx behind everything that is there, for the life of the device.
    #[track_caller]
    pub fn attach_tcx(&self, netns: &Netns, device: &str, direction: Direction) {
        netns.run(|| {
            let index = if_nametoindex(device).expect("a device");
            let kind = TCX_INGRESS + u32::from(direction == Direction::Egress);
            // Device, program, attach type, flags, two to relate to, revision.
            bpf(PROG_ATTACH, &[index, raw(&self.program), kind, 0, 0, 0, 0, 0]).expect("attached");
        });
    }

    /// Attaches it as the last filter of a clsact qdisc, for the life of the device.
    #[track_caller]
    pub fn attach_clsact(&self, netns: &Netns, device: &str, direction: Direction) {
        let dir = sweep::unique_pin_path();
        let path = dir.join("count");
        fs::create_dir(&dir).expect("a directory in the BPF file system");
        let name = std::ffi::CString::new(path.as_os_str().as_bytes()).expect("a path");
        let [low, high] = address(name.as_ptr());
        bpf(OBJ_PIN, &[low, high, raw(&self.program), 0]).expect("pinned");
        if !netns.exec(&format!("tc qdisc show dev {device}")).contains("clsact") {
            netns.exec(&format!("tc qdisc add dev {device} clsact"));
        }
        let way = if direction == Direction::Ingress { "ingress" } else { "egress" };
        netns.exec(&format!(
            "tc filter add dev {device} {way} prio 50000 bpf object-pinned {} direct-action",
            Path::new(&path).display()
        ));
        // The device keeps the program.
        fs::remove_dir_all(&dir).expect("unpinned");
    }

    /// UDP packets so far.
    #[track_caller]
    pub fn count(&self) -> u64 {
        let (key, mut value) = (0_u32, 0_u64);
        let [key_low, key_high] = address(&raw const key);
        let [low, high] = address((&raw mut value).cast_const());
        bpf(MAP_LOOKUP_ELEM, &[raw(&self.map), 0, key_low, key_high, low, high]).expect("a count");
        value
    }
}
