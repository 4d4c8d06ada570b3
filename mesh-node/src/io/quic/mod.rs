//! QUIC: TLS, the endpoint, connections with their control streams, and packets as DATAGRAM frames.
pub mod aside;
pub mod connection;
pub mod datagram;
pub mod echo;
pub mod endpoint;
pub mod exporter;
pub mod hearing;
pub mod offloads;
pub mod path;
pub mod tls;
pub mod trains;
pub mod udp_sockets;

#[cfg(test)]
pub(crate) mod tests;
