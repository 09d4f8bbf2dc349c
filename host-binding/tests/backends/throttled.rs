//! DynamoDB with too little throughput, which no server to test with has: stands before one and leaves parts of batches undone, as the
//! documentation of `BatchWriteItem` and `BatchGetItem` says, or refuses requests.

use crate::faults;
use crate::http::Request;
use crate::servers::{Server, free_port};
use kvasi_wasmtime::Code;
use kvasi_wasmtime::backend::Key;
use serde_json::{Value, json};
use std::io::{BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What becomes of a request.
#[derive(Clone, Copy)]
enum Room {
    /// It is done.
    All,
    /// Of a batch, so many items.
    Items(usize),
    /// So many items of the next batch, and nothing of those that follow.
    Once(usize),
    /// So many requests of any kind are refused, then there is room for all.
    After(usize),
}

struct Throttle {
    room: Room,
    requests: usize,
}

fn serve(client: TcpStream, server: u16, throttle: &Mutex<Throttle>) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let mut reader = BufReader::new(client.try_clone()?);
    let mut writer = client;
    while let Some(request) = Request::read(&mut reader)? {
        let (status, body) = answer(&request, server, throttle)?;
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/x-amz-json-1.0\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        writer.write_all(head.as_bytes())?;
        writer.write_all(&body)?;
    }
    Ok(())
}

fn answer(request: &Request, server: u16, throttle: &Mutex<Throttle>) -> std::io::Result<(u16, Vec<u8>)> {
    let call = request.header("x-amz-target").rsplit('.').next().unwrap_or_default();
    let undone = match call {
        "BatchWriteItem" => "UnprocessedItems",
        "BatchGetItem" => "UnprocessedKeys",
        _ => "",
    };
    let mut throttle = throttle.lock().unwrap();
    throttle.requests += 1;
    let room = match throttle.room {
        Room::All => usize::MAX,
        Room::After(0) => usize::MAX,
        Room::After(refused) => {
            throttle.room = Room::After(refused - 1);
            let kind = "com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException";
            return Ok((400, json!({ "__type": kind, "message": "too fast" }).to_string().into_bytes()));
        }
        Room::Items(_) | Room::Once(_) if undone.is_empty() => usize::MAX,
        Room::Items(items) => items,
        Room::Once(items) => {
            throttle.room = Room::Once(0);
            items
        }
    };
    drop(throttle);
    let mut asked: Value = serde_json::from_slice(&request.body)?;
    if room == usize::MAX || undone.is_empty() {
        return forward(request, server, &request.body);
    }
    let tables = asked["RequestItems"].as_object_mut().unwrap();
    let (table, items) = tables.iter_mut().next().unwrap();
    let table = table.clone();
    let rest = {
        let list = if call == "BatchGetItem" { &mut items["Keys"] } else { &mut *items };
        let list = list.as_array_mut().unwrap();
        list.split_off(room.min(list.len()))
    };
    let mut left = items.clone();
    match call {
        "BatchGetItem" => left["Keys"] = Value::from(rest.clone()),
        _ => left = Value::from(rest.clone()),
    }
    let (status, body) = match room {
        // The service refuses an empty batch.
        0 => (200, b"{}".to_vec()),
        _ => forward(request, server, asked.to_string().as_bytes())?,
    };
    let mut answer: Value = serde_json::from_slice(&body)?;
    if !rest.is_empty() {
        answer[undone] = json!({ table: left });
    }
    Ok((status, answer.to_string().into_bytes()))
}

/// What the server answers.
fn forward(request: &Request, server: u16, body: &[u8]) -> std::io::Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, server))?;
    let mut head = format!("{} / HTTP/1.0\r\ncontent-length: {}\r\n", request.method, body.len());
    for name in ["host", "content-type", "x-amz-target", "x-amz-date", "authorization"] {
        head += &format!("{name}: {}\r\n", request.header(name));
    }
    stream.write_all((head + "\r\n").as_bytes())?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let status = std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap();
    Ok((status, answer[end + 4..].to_vec()))
}

pub(crate) async fn batches_are_finished_or_say_so(server: &Server) {
    let port = free_port();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let throttle = Arc::new(Mutex::new(Throttle { room: Room::All, requests: 0 }));
    let (shared, behind) = (throttle.clone(), server.ports[0]);
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let throttle = shared.clone();
            // A client may go at any time.
            std::thread::spawn(move || drop(serve(client.unwrap(), behind, &throttle)));
        }
    });
    let bucket = faults::bucket(&server.url.replace(&behind.to_string(), &port.to_string())).await;
    let keys: Vec<String> = (0..60).map(|i| format!("key {i}")).collect();
    let names: Vec<Key<'_>> = keys.iter().map(|key| Key::from(key.as_str())).collect();
    let pairs = |value: &'static [u8]| -> Vec<(Key<'_>, &[u8])> {
        keys.iter().map(|key| (Key::from(key.as_str()), value)).collect()
    };
    let set = |room| *throttle.lock().unwrap() = Throttle { room, requests: 0 };
    let requests = || throttle.lock().unwrap().requests;

    // Ten at a time: 25, 25 and 10 writes are 3 + 3 + 1 requests, 60 reads 6.
    set(Room::Items(10));
    bucket.set_many(&pairs(b"1")).await.unwrap();
    assert_eq!(requests(), 7);
    set(Room::Items(10));
    let found = bucket.get_many(&names).await.unwrap();
    assert_eq!(requests(), 6);
    assert!(found.iter().all(|pair| pair.as_ref().is_some_and(|(_, value)| &**value == b"1")));

    // Nothing is done for as long as the call may take: that is told, in time, and nothing is in doubt.
    let begun = Instant::now();
    set(Room::Items(0));
    let error = bucket.get_many(&names).await.unwrap_err();
    assert_eq!(error.code(), Code::Busy, "{error}");
    let error = bucket.set_many(&pairs(b"2")[..20]).await.unwrap_err();
    assert_eq!(error.code(), Code::Busy, "{error}");
    assert!(begun.elapsed() < 2 * (faults::POLICY.timeout + Duration::from_secs(1)), "took {:?}", begun.elapsed());
    // It was asked again under pauses that grow, not as fast as it goes.
    assert!((4..30).contains(&requests()), "{}", requests());
    set(Room::All);
    assert_eq!(bucket.get(&keys[0]).await.unwrap().as_deref(), Some(&b"1"[..]));

    // Some of it is done, and then no more: that is in doubt.
    set(Room::Once(10));
    let error = bucket.set_many(&pairs(b"3")[..20]).await.unwrap_err();
    assert_eq!(error.code(), Code::Indeterminate, "{error}");
    set(Room::All);
    let found = bucket.get_many(&names[..20]).await.unwrap();
    let written = found.iter().flatten().filter(|(_, value)| &**value == b"3").count();
    assert_eq!(written, 10);

    // A refusal has changed nothing, so that an increment is made again, and once.
    set(Room::After(3));
    assert_eq!(bucket.increment("number", 5).await.unwrap(), 5);
    assert_eq!(requests(), 4);
    set(Room::After(4));
    let error = bucket.increment("number", 5).await.unwrap_err();
    assert_eq!(error.code(), Code::Busy, "{error}");
    set(Room::All);
    bucket.delete_many(&names).await.unwrap();
    assert_eq!(bucket.increment("number", 0).await.unwrap(), 5);
}
