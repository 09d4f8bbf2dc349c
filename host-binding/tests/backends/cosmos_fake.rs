//! A stand-in for Cosmos DB for NoSQL that keeps to what its REST documentation says, as far as a back end can see: signatures, partitions,
//! ETags and their conditions, the statuses of what is missing, taken, stale, too large or too fast, queries with parameters, and
//! continuations. The service itself was never asked: what is here is its documentation, read.
//!
//! It runs as a process of its own, so that a test can stop and kill it like any server: this very test binary, started again to run
//! [`serve_forever`].

use crate::http::Request;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// The account's key: the one that Azure's own emulator is known by.
pub(crate) const KEY: &str = "C2y6yDjf5/R+ob0N8A7Cgv30VRDJIWEHLM+4QDU5DE2nQ9nDuVTqobD4b8mGGyPMbIZnqyMsEcaGQy67XIw/Jw==";
/// Names the port in the environment of the process that serves.
pub(crate) const PORT: &str = "KVASI_COSMOS_FAKE_PORT";

const ITEM_BYTES_MAX: usize = 2 << 20;
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// In the environment: of so many requests about items one is told to come back later.
pub(crate) const THROTTLED: &str = "KVASI_COSMOS_FAKE_THROTTLED";

/// Not a test: the server, when this binary is started for it.
#[test]
#[ignore = "the server of other tests"]
fn serve_forever() {
    let Ok(port) = std::env::var(PORT) else { return };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.parse().unwrap())).unwrap();
    let throttled = std::env::var(THROTTLED).ok().and_then(|throttled| throttled.parse().ok());
    let account = Arc::new(Mutex::new(Account { throttled, ..Account::default() }));
    for client in listener.incoming() {
        let account = account.clone();
        // A client may go at any time.
        std::thread::spawn(move || drop(serve(client.unwrap(), &account)));
    }
}

fn json_of(request: &Request) -> Result<Value, Reply> {
    serde_json::from_slice(&request.body).map_err(|error| Reply::refusal(400, "BadRequest", &error.to_string()))
}

struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Value,
}

impl Reply {
    fn new(status: u16, body: Value) -> Reply {
        Reply { status, headers: Vec::new(), body }
    }

    fn refusal(status: u16, code: &str, message: &str) -> Reply {
        Reply::new(status, json!({ "code": code, "message": message }))
    }

    fn with(mut self, name: &'static str, value: impl ToString) -> Reply {
        self.headers.push((name, value.to_string()));
        self
    }
}

fn serve(client: TcpStream, account: &Mutex<Account>) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let mut reader = BufReader::new(client.try_clone()?);
    let mut writer = client;
    while let Some(request) = Request::read(&mut reader)? {
        let mut account = account.lock().unwrap();
        let reply = account.answer(&request).unwrap_or_else(|refusal| refusal);
        let reply = reply.with("x-ms-session-token", format!("0:-1#{}", account.position));
        drop(account);
        let body = if reply.status == 204 { String::new() } else { reply.body.to_string() };
        let mut head = format!("HTTP/1.1 {} X\r\ncontent-length: {}\r\n", reply.status, body.len());
        for (name, value) in &reply.headers {
            head += &format!("{name}: {value}\r\n");
        }
        writer.write_all((head + "\r\n" + &body).as_bytes())?;
    }
    Ok(())
}

/// Containers by their place, `dbs/D/colls/C`.
#[derive(Default)]
struct Account {
    databases: Vec<String>,
    containers: BTreeMap<String, Container>,
    /// Counts every change: what ETags and sessions are made of.
    position: u64,
    requests: u64,
    throttled: Option<u64>,
}

struct Container {
    /// The property that partitions.
    key: String,
    /// Items by partition and id: as Cosmos orders strings of ASCII.
    items: BTreeMap<(String, String), Value>,
}

fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

impl Account {
    fn answer(&mut self, request: &Request) -> Result<Reply, Reply> {
        let parts: Vec<&str> = request.path.split('/').collect();
        let (kind, resource) = match parts[..] {
            ["dbs"] => ("dbs", String::new()),
            ["dbs", _, "colls"] => ("colls", parts[..2].join("/")),
            ["dbs", _, "colls", _, "docs"] => ("docs", parts[..4].join("/")),
            ["dbs", _, "colls", _, "docs", _] => ("docs", request.path.clone()),
            _ => return Err(Reply::refusal(400, "BadRequest", "no such resource")),
        };
        check_signature(request, kind, &resource)?;
        match (request.method.as_str(), &parts[..]) {
            ("POST", ["dbs"]) => {
                let id = json_of(request)?["id"].as_str().unwrap_or_default().to_owned();
                if self.databases.contains(&id) {
                    return Err(Reply::refusal(409, "Conflict", "the database exists"));
                }
                self.databases.push(id);
                Ok(Reply::new(201, json_of(request)?))
            }
            ("POST", ["dbs", database, "colls"]) => {
                if !self.databases.iter().any(|known| known == database) {
                    return Err(Reply::refusal(404, "NotFound", "no such database").with("x-ms-substatus", 1003));
                }
                let body = json_of(request)?;
                let place = format!("dbs/{database}/colls/{}", body["id"].as_str().unwrap_or_default());
                if self.containers.contains_key(&place) {
                    return Err(Reply::refusal(409, "Conflict", "the container exists"));
                }
                let key =
                    body["partitionKey"]["paths"][0].as_str().unwrap_or_default().trim_start_matches('/').to_owned();
                self.containers.insert(place, Container { key, items: BTreeMap::new() });
                Ok(Reply::new(201, body))
            }
            (_, ["dbs", _, "colls", _, "docs", ..]) => self.items(request, &parts),
            _ => Err(Reply::refusal(405, "MethodNotAllowed", "not here")),
        }
    }

    fn items(&mut self, request: &Request, parts: &[&str]) -> Result<Reply, Reply> {
        self.requests += 1;
        if self.throttled.is_some_and(|throttled| self.requests.is_multiple_of(throttled)) {
            return Err(Reply::refusal(429, "TooManyRequests", "slower").with("x-ms-retry-after-ms", 5));
        }
        let Some(container) = self.containers.get_mut(&parts[..4].join("/")) else {
            return Err(Reply::refusal(404, "NotFound", "Owner resource does not exist").with("x-ms-substatus", 1003));
        };
        let partition: Vec<String> = serde_json::from_str(request.header("x-ms-documentdb-partitionkey"))
            .map_err(|_| Reply::refusal(400, "BadRequest", "a partition key is an array of one string here"))?;
        let [partition] = &partition[..] else { return Err(Reply::refusal(400, "BadRequest", "one key")) };
        if partition.len() > 2048 {
            return Err(Reply::refusal(400, "BadRequest", "the partition key is too long"));
        }
        if request.method == "POST" && request.is("x-ms-documentdb-isquery") {
            return query(container, partition, request);
        }
        let missing =
            || Reply::refusal(404, "NotFound", "Entity with the specified id does not exist").with("x-ms-substatus", 0);
        let position = self.position + 1;
        // Everything that stores: the checks, then the item with what the service adds.
        let store = |container: &mut Container, status| {
            let mut item = json_of(request)?;
            let id = item["id"].as_str().unwrap_or_default().to_owned();
            if id.is_empty() || id.len() > 1023 || id.contains(['/', '\\', '?', '#']) || id.ends_with(' ') {
                return Err(Reply::refusal(400, "BadRequest", "the id is none"));
            }
            if item[&container.key] != json!(partition) {
                return Err(Reply::refusal(400, "BadRequest", "the partition key is not that of the item"));
            }
            if request.body.len() > ITEM_BYTES_MAX {
                return Err(Reply::refusal(413, "RequestEntityTooLarge", "Request size is too large"));
            }
            item["_etag"] = json!(format!("\"{position:08x}\""));
            item["_ts"] = json!(position);
            container.items.insert((partition.clone(), id), item.clone());
            Ok(Reply::new(status, item))
        };
        let reply = if let Some(id) = parts.get(5) {
            let at = (partition.clone(), decoded(id));
            let Some(item) = container.items.get(&at) else { return Err(missing()) };
            let condition = request.header("if-match");
            if !condition.is_empty() && item["_etag"] != json!(condition) {
                return Err(Reply::refusal(412, "PreconditionFailed", "Operation cannot be performed"));
            }
            match request.method.as_str() {
                "GET" => return Ok(Reply::new(200, item.clone())),
                "PUT" => store(container, 200)?,
                "DELETE" => {
                    container.items.remove(&at);
                    Reply::new(204, Value::Null)
                }
                _ => return Err(Reply::refusal(405, "MethodNotAllowed", "not here")),
            }
        } else {
            let id = json_of(request)?["id"].as_str().unwrap_or_default().to_owned();
            let there = container.items.contains_key(&(partition.clone(), id));
            if there && !request.is("x-ms-documentdb-is-upsert") {
                return Err(Reply::refusal(409, "Conflict", "Entity with the specified id already exists"));
            }
            store(container, if there { 200 } else { 201 })?
        };
        self.position = position;
        Ok(reply)
    }
}

/// Source: "Access control on Azure Cosmos DB resources".
fn check_signature(request: &Request, kind: &str, resource: &str) -> Result<(), Reply> {
    let date = request.header("x-ms-date");
    let text =
        format!("{}\n{kind}\n{resource}\n{}\n\n", request.method.to_ascii_lowercase(), date.to_ascii_lowercase());
    let mut mac = Hmac::<Sha256>::new_from_slice(&BASE64.decode(KEY).unwrap()).unwrap();
    mac.update(text.as_bytes());
    let expected = format!("type=master&ver=1.0&sig={}", BASE64.encode(mac.finalize().into_bytes()));
    if decoded(request.header("authorization")) != expected || request.header("x-ms-version").is_empty() {
        return Err(Reply::refusal(401, "Unauthorized", "the input authorization token can't serve the request"));
    }
    Ok(())
}

/// Conditions joined by `AND`, with parameters only: equality, `>`, `IN`, `STARTSWITH`; an order by `c.id`.
fn query(container: &Container, partition: &str, request: &Request) -> Result<Reply, Reply> {
    let bad = |what: &str| Reply::refusal(400, "BadRequest", what);
    if request.header("content-type") != "application/query+json" {
        return Err(bad("a query is application/query+json"));
    }
    let body = json_of(request)?;
    let text = body["query"].as_str().ok_or_else(|| bad("no query"))?;
    if text.contains(['\'', '"']) {
        return Err(bad("this service is asked with parameters only"));
    }
    let parameters: HashMap<&str, &str> = body["parameters"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|parameter| Some((parameter["name"].as_str()?, parameter["value"].as_str()?)))
        .collect();
    let value = |name: &str| parameters.get(name.trim()).copied().ok_or_else(|| bad("an unknown parameter"));
    let (fields, rest) =
        text.strip_prefix("SELECT ").and_then(|text| text.split_once(" FROM c WHERE ")).ok_or_else(|| bad(text))?;
    let conditions = rest.trim_end_matches(" ORDER BY c.id");
    let fields: Vec<&str> = fields.split(", ").map(|field| field.trim_start_matches("c.")).collect();
    type Condition<'a> = Box<dyn Fn(&str, &Value) -> bool + 'a>;
    let mut holds: Vec<Condition<'_>> = Vec::new();
    for condition in conditions.split(" AND ") {
        let between = |begin: &str, end: &str| condition.strip_prefix(begin)?.strip_suffix(end);
        if let Some(list) = between("c.id IN (", ")") {
            let ids = list.split(',').map(value).collect::<Result<HashSet<&str>, Reply>>()?;
            holds.push(Box::new(move |id, _| ids.contains(id)));
        } else if let Some(name) = between("c.b = ", "") {
            let bucket = value(name)?;
            holds.push(Box::new(move |_, item| item["b"].as_str() == Some(bucket)));
        } else if let Some(name) = between("c.id > ", "") {
            let after = value(name)?;
            holds.push(Box::new(move |id, _| id > after));
        } else if let Some(name) = between("STARTSWITH(c.id, ", ")") {
            let prefix = value(name)?;
            holds.push(Box::new(move |id, _| id.starts_with(prefix)));
        } else {
            return Err(bad(condition));
        }
    }
    let of_partition = container.items.iter().filter(|((of, _), _)| of == partition);
    let found: Vec<&Value> = of_partition
        .filter(|((_, id), item)| holds.iter().all(|holds| holds(id, item)))
        .map(|(_, item)| item)
        .collect();
    // A continuation says how many were given: it is the service's own business.
    let begin: usize = request.header("x-ms-continuation").parse().unwrap_or(0);
    let count_max = request.header("x-ms-max-item-count").parse().unwrap_or(100).clamp(1, 1_000);
    let (mut answer, mut bytes) = (Vec::new(), 0);
    for item in found.iter().skip(begin) {
        let item: serde_json::Map<String, Value> =
            fields.iter().map(|field| ((*field).to_owned(), item[*field].clone())).collect();
        let item = Value::Object(item);
        bytes += item["id"].as_str().map_or(0, str::len) + item["v"].as_str().map_or(0, str::len) + 20;
        if answer.len() == count_max || (bytes > ANSWER_BYTES_MAX && !answer.is_empty()) {
            break;
        }
        answer.push(item);
    }
    let end = begin + answer.len();
    let reply = Reply::new(200, json!({ "_rid": "r", "_count": answer.len(), "Documents": answer }));
    Ok(if end < found.len() { reply.with("x-ms-continuation", end) } else { reply })
}
