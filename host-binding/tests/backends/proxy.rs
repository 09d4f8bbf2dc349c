//! A network that fails on demand: stands between a client and a server, passes bytes on, and counts round trips.

#![allow(dead_code, reason = "each back end uses some of it")]

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What becomes of bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mode {
    /// They arrive.
    Pass,
    /// They arrive later.
    Delay(Duration),
    /// Of the server's next answers so many bytes arrive, then the connection ends: in order, or by a reset. From then on as `Pass`.
    CutAnswer { bytes: usize, reset: bool },
    /// Of the client's next request so many bytes arrive, then the connection ends. From then on as `Pass`.
    CutRequest { bytes: usize },
    /// None arrives, and nobody is told.
    BlackHole,
    /// The server's arrive one by one, slowly.
    Drip(Duration),
    /// Connections end as soon as they are made.
    Refuse,
    /// The server's next answer is lost and no other will come, but it takes what the client sends: its half of the connection is closed.
    /// From then on as `Pass`.
    HalfClose,
    /// The client's bytes are taken in small pieces, with a pause after each: whoever sends much must wait.
    SlowRead(Duration),
}

/// What a slow reader takes at once.
const SMALL_BYTES: usize = 4 << 10;

pub(crate) struct Proxy {
    pub(crate) port: u16,
    mode: Arc<Mutex<Mode>>,
    trips: Arc<AtomicU64>,
    listener: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl Proxy {
    pub(crate) async fn to(server: u16) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (mode, trips) = (Arc::new(Mutex::new(Mode::Pass)), Arc::new(AtomicU64::new(0)));
        let shared = (mode.clone(), trips.clone());
        let listener = tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else { return };
                let (mode, trips) = shared.clone();
                tokio::spawn(async move {
                    // Either end may go at any time.
                    let _ = serve(client, server, &mode, &trips).await;
                });
            }
        });
        Proxy { port, mode, trips, listener }
    }

    pub(crate) fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    /// How often the client has spoken since it was last answered, over all connections, since this was last asked; of HTTP/2, which
    /// speaks of other things in between, how many requests it has begun.
    pub(crate) fn trips(&self) -> u64 {
        self.trips.swap(0, Relaxed)
    }
}

async fn serve(mut client: TcpStream, server: u16, mode: &Mutex<Mode>, trips: &AtomicU64) -> std::io::Result<()> {
    if matches!(*mode.lock().unwrap(), Mode::Refuse) {
        return Ok(());
    }
    client.set_nodelay(true)?;
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await?;
    server.set_nodelay(true)?;
    let (mut request, mut answer) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let (mut answered, mut frames, mut half_closed) = (true, None::<Frames>, false);
    loop {
        let piece = if matches!(*mode.lock().unwrap(), Mode::SlowRead(_)) { SMALL_BYTES } else { request.len() };
        let (from_client, bytes) = tokio::select! {
            read = client.read(&mut request[..piece]) => (true, read?),
            read = server.read(&mut answer) => (false, read?),
        };
        if bytes == 0 {
            return Ok(());
        }
        if from_client {
            match &mut frames {
                Some(frames) => trips.fetch_add(frames.requests(&request[..bytes]), Relaxed),
                None if request.starts_with(Frames::PREFACE) => {
                    let mut new = Frames::default();
                    let begun = new.requests(&request[Frames::PREFACE.len()..bytes]);
                    frames = Some(new);
                    trips.fetch_add(begun, Relaxed)
                }
                None => trips.fetch_add(answered.into(), Relaxed),
            };
        }
        answered = !from_client;
        if half_closed && !from_client {
            continue;
        }
        let data = if from_client { &request[..bytes] } else { &answer[..bytes] };
        let to = if from_client { &mut server } else { &mut client };
        let now = *mode.lock().unwrap();
        match (now, from_client) {
            (Mode::BlackHole, _) => {}
            (Mode::Delay(time), _) => {
                tokio::time::sleep(time).await;
                to.write_all(data).await?;
            }
            (Mode::Drip(time), false) => {
                for byte in data {
                    to.write_all(&[*byte]).await?;
                    tokio::time::sleep(time).await;
                }
            }
            (Mode::CutAnswer { bytes, reset }, false) => {
                to.write_all(&data[..bytes.min(data.len())]).await?;
                to.flush().await?;
                if bytes < data.len() {
                    *mode.lock().unwrap() = Mode::Pass;
                    if reset {
                        client.set_zero_linger()?;
                    }
                    return Ok(());
                }
                *mode.lock().unwrap() = Mode::CutAnswer { bytes: bytes - data.len(), reset };
            }
            (Mode::HalfClose, false) => {
                client.shutdown().await?;
                half_closed = true;
                *mode.lock().unwrap() = Mode::Pass;
            }
            (Mode::SlowRead(pause), true) => {
                to.write_all(data).await?;
                tokio::time::sleep(pause).await;
            }
            (Mode::CutRequest { bytes }, true) => {
                to.write_all(&data[..bytes.min(data.len())]).await?;
                *mode.lock().unwrap() = Mode::Pass;
                return Ok(());
            }
            _ => to.write_all(data).await?,
        }
    }
}

/// What an HTTP/2 client sends, as far as it takes to count its requests.
#[derive(Default)]
struct Frames {
    /// The beginning of a frame's head that has not come whole.
    head: Vec<u8>,
    /// Bytes of the frame that are still to come.
    rest: usize,
}

impl Frames {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const HEAD_BYTES: usize = 9;
    /// The kind of frame that begins a request.
    const HEADERS: u8 = 1;

    fn requests(&mut self, mut data: &[u8]) -> u64 {
        let mut begun = 0;
        while !data.is_empty() {
            if self.rest > 0 {
                let skipped = self.rest.min(data.len());
                self.rest -= skipped;
                data = &data[skipped..];
                continue;
            }
            self.head.push(data[0]);
            data = &data[1..];
            if self.head.len() == Self::HEAD_BYTES {
                self.rest =
                    usize::from(self.head[0]) << 16 | usize::from(self.head[1]) << 8 | usize::from(self.head[2]);
                begun += u64::from(self.head[3] == Self::HEADERS);
                self.head.clear();
            }
        }
        begun
    }
}
