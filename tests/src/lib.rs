//! What the kernel tests and labs of this package share.

pub mod api_client;
pub mod api_server;
pub mod associations;
pub mod attempt;
pub mod bonded;
pub mod cluster;
pub mod conformance;
pub mod control_plane;
pub mod endtoend;
pub mod foreign;
pub mod health;
pub mod host_path;
pub mod island;
pub mod kernel;
pub mod link;
pub mod load;
pub mod newcomer;
pub mod object;
pub mod paths;
pub mod pinned;
pub mod raw;
pub mod raw_datagram;
pub mod ring;
pub mod sctp;

pub mod shapes;
pub mod simulation;
pub mod site;
pub mod socket_world;
pub mod stage;
pub mod steady;
