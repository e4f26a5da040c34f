//! Health check node ports, as load balancers ask them.

use anyhow::Result;
use lb_lab::{Place, client};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

/// Asks a health check node port: the status and the body.
pub fn ask(from: &Place, server: SocketAddr) -> Result<(u16, String)> {
    let text = from.call(|| {
        let mut stream = TcpStream::connect_timeout(&server, client::PATIENCE)?;
        stream.write_all(b"GET /whatever HTTP/1.1\r\nHost: lb\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })?;
    let status = text.split_whitespace().nth(1).unwrap_or_default().parse()?;
    let body = text.rsplit("\r\n").next().unwrap_or_default();
    Ok((status, body.to_owned()))
}
