//! What is too much to stand in each program more than once: functions that the verifier checks by
//! themselves, with any arguments (global functions with pointers, Linux 5.12). So they have no type
//! parameters, and know nothing of the packet but what [`Work`] says.

use lbxdp_common::flow_set::FlowPlace;

use super::{
    Attended, attend,
    table::{self, Entered},
};
use crate::{
    family::{V4, V6},
    work::Work,
};

macro_rules! calls {
    ($family:ident, $addr:ty, $attend:ident, $enter:ident) => {
        /// See [`attend`].
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $attend(
            work: *mut Work<$addr>,
            place: *mut FlowPlace<$addr>,
            now: u64,
        ) -> u64 {
            if work.is_null() || place.is_null() {
                return Attended::IS_OVER.0;
            }
            // SAFETY: a reference of the caller's.
            attend::<$family>(unsafe { &mut *work }, place, now).0
        }

        /// See [`table::enter`].
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $enter(work: *mut Work<$addr>, claims: u64, now: u64) -> u64 {
            if work.is_null() {
                return Entered::NO_ROOM;
            }
            // SAFETY: a reference of the caller's.
            table::enter::<$family>(unsafe { &mut *work }, claims != 0, now).0
        }

        impl Calls<$addr> for $family {
            #[inline(always)]
            fn attend_flow(
                work: &mut Work<$addr>,
                place: *mut FlowPlace<$addr>,
                now: u64,
            ) -> Attended {
                Attended($attend(work, place, now))
            }

            #[inline(always)]
            fn enter_flow(work: &mut Work<$addr>, claims: bool, now: u64) -> Entered {
                Entered($enter(work, claims.into(), now))
            }
        }
    };
}

/// The functions of a family.
pub trait Calls<A> {
    /// See [`attend`].
    fn attend_flow(work: &mut Work<A>, place: *mut FlowPlace<A>, now: u64) -> Attended;
    /// See [`table::enter`].
    fn enter_flow(work: &mut Work<A>, claims: bool, now: u64) -> Entered;
}

calls!(V4, [u8; 4], lbxdp_attend_flow_v4, lbxdp_enter_flow_v4);
calls!(V6, [u8; 16], lbxdp_attend_flow_v6, lbxdp_enter_flow_v6);
