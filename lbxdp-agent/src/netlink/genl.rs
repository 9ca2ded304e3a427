//! What XDP can do on a device: the generic netlink family `netdev` (6.3+).

use std::collections::BTreeMap;
use std::io;

use netlink_packet_core::{DecodeError, Emitable, NlasIterator, ParseableParametrized};
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};

use super::request::Requests;

/// The driver runs XDP programs.
pub const XDP_BASIC: u64 = 1;
/// Programs may redirect from the device.
pub const XDP_REDIRECT: u64 = 1 << 1;
/// Programs may redirect to the device.
pub const XDP_NDO_XMIT: u64 = 1 << 2;

const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;

/// A message about one device, or the question for all of them.
#[derive(Clone, Debug, Default)]
struct Netdev {
    ifindex: Option<u32>,
    xdp_features: Option<u64>,
}

impl GenlFamily for Netdev {
    fn family_name() -> &'static str {
        "netdev"
    }

    fn command(&self) -> u8 {
        NETDEV_CMD_DEV_GET
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Netdev {
    fn buffer_len(&self) -> usize {
        0
    }

    fn emit(&self, _: &mut [u8]) {}
}

impl ParseableParametrized<[u8], GenlHeader> for Netdev {
    fn parse_with_param(attributes: &[u8], _: GenlHeader) -> Result<Self, DecodeError> {
        let mut netdev = Self::default();
        for attribute in NlasIterator::new(attributes) {
            let attribute = attribute?;
            match attribute.kind() {
                NETDEV_A_DEV_IFINDEX => {
                    netdev.ifindex = attribute.value().try_into().ok().map(u32::from_ne_bytes);
                }
                NETDEV_A_DEV_XDP_FEATURES => {
                    netdev.xdp_features = attribute.value().try_into().ok().map(u64::from_ne_bytes);
                }
                _ => {}
            }
        }
        Ok(netdev)
    }
}

/// Reader of XDP features.
#[derive(Debug)]
pub struct XdpFeatures {
    requests: Requests,
    family: u16,
}

impl XdpFeatures {
    /// In the calling thread's network namespace; `None` before 6.3.
    pub fn open() -> io::Result<Option<Self>> {
        let mut requests = Requests::generic()?;
        let question = GenlMessage::from_payload(GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName(Netdev::family_name().to_owned())],
        });
        let answers = match requests.ask(question, 0) {
            Ok(answers) => answers,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            Err(error) => return Err(error),
        };
        let family = answers.iter().flat_map(|answer| &answer.payload.nlas).find_map(|attribute| {
            match attribute {
                GenlCtrlAttrs::FamilyId(id) => Some(*id),
                _ => None,
            }
        });
        Ok(family.map(|family| Self { requests, family }))
    }

    /// The features of every device, by interface index.
    pub fn read(&mut self) -> io::Result<BTreeMap<u32, u64>> {
        let mut question = GenlMessage::from_payload(Netdev::default());
        question.set_resolved_family_id(self.family);
        let answers = self.requests.dump(question)?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| Some((answer.payload.ifindex?, answer.payload.xdp_features?)))
            .collect())
    }
}
