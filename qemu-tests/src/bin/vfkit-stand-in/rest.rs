//! vfkit's RESTful service: the VM's state, asked for and changed.

use std::io;
use std::sync::Arc;

use host_shim::machine::Machine;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

pub async fn serve(listener: UnixListener, machine: Arc<Machine>) {
    while let Ok((stream, _)) = listener.accept().await {
        // One after the other is fast enough for its one user.
        let _ = answer(stream, &machine).await;
    }
}

async fn answer(mut stream: UnixStream, machine: &Machine) -> io::Result<()> {
    let mut request = Vec::new();
    let head = loop {
        let mut buffer = [0; 512];
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            read => request.extend_from_slice(&buffer[..read]),
        }
        let text = String::from_utf8_lossy(&request).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        if body.len() >= length.and_then(|length| length.parse().ok()).unwrap_or(0) {
            break text;
        }
    };
    let (status, body) = match () {
        () if head.starts_with("GET /vm/state ") => {
            let text = r#"{"canHardStop":true,"canPause":true,"canResume":false,"canStart":false,"canStop":true,"state":"VirtualMachineStateRunning"}"#;
            ("200 OK", text)
        }
        () if !head.starts_with("POST /vm/state ") => ("404 Not Found", ""),
        () if head.contains("\"HardStop\"") => ("202 Accepted", ""),
        () if head.contains("\"Stop\"") => ("202 Accepted", ""),
        () => ("400 Bad Request", r#"{"error":"invalid state"}"#),
    };
    let text = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await?;
    if head.contains("\"HardStop\"") {
        machine.stop().await;
    } else if head.contains("\"Stop\"") {
        machine.power_down().await;
    }
    Ok(())
}
