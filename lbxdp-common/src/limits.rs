//! Map capacities, in entries. One place, so that the memory limit of a container can be
//! computed from it (map memory is charged to the pod that creates the maps).

/// Frontends of one family, unless the agent makes the maps another size; also the number of
/// descriptors, names and statistics per family.
pub const MAX_FRONTENDS: usize = 65_536;
/// Backends of one family.
pub const MAX_BACKENDS: usize = 131_072;
/// Destination addresses of one family that the programs look at.
pub const MAX_ADDRESSES: usize = 131_072;
/// Blocks of [`crate::TABLE_BLOCK`] slots in the slab of Maglev tables (both families share it).
pub const TABLE_BLOCKS: usize = 1_572_864;
/// Flow entries of one family, unless the agent makes the tables another size; a flow has two, one
/// for each direction.
pub const MAX_FLOWS: usize = 262_144;
/// Sets of [`crate::flow_set::WAYS`] entries that this makes.
pub const FLOW_SETS: usize = MAX_FLOWS / crate::flow_set::WAYS;
/// Network devices the programs may be attached to or send to.
pub const MAX_DEVICES: usize = 1_024;
/// Words of `free_ports`, a bit for each port.
pub const PORT_WORDS: usize = 65_536 / 64;
/// Devices with an interface index below this are found without a hash.
pub const NEAR_DEVICES: usize = 4_096;
/// Next hops that backends of both families are reached by, the one that nobody uses included.
pub const MAX_HOPS: usize = 4_096;
/// Clients of Service ports with session affinity, of both families.
pub const MAX_AFFINITIES: usize = 65_536;
/// Backends of tables that frontends with session affinity use.
pub const MAX_MEMBERS: usize = 262_144;
/// Source ranges of one family.
pub const MAX_RANGES: usize = 65_536;
/// Entries for translated sockets of one family; most sockets have two.
pub const MAX_SOCKETS: usize = 65_536;
/// Fragmented datagrams of one family that are under way.
pub const MAX_FRAGMENTS: usize = 8_192;
/// Announced addresses of one family, once for each device.
pub const MAX_ANNOUNCED: usize = 8_192;
