//! A component file: read, recognized, compiled, and held against what `kvasi run` serves.
//!
//! Flow: path -> bytes -> [`load`] -> [`check_imports`] -> `run`. What is wrong is said in terms of the file, before
//! anything of it runs.

use crate::compiled::Compiled;
use crate::failure::Failure;
use kvasi_wasmtime::Shapes;
use std::path::Path;
use std::time::Duration;
use wasmtime::component::Component;
use wasmtime::{Config, Engine};

/// The packages of WASI 0.2 and 0.3 that a command may import, by wasmtime-wasi.
const WASI: [&str; 6] = ["cli", "clocks", "filesystem", "io", "random", "sockets"];
/// And those that a proxy may. Requests of its own are refused when it makes them.
#[cfg(feature = "serve")]
const WASI_PROXY: [&str; 7] = ["cli", "clocks", "filesystem", "http", "io", "random", "sockets"];

/// What a component is run as, which decides what it may import.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum World {
    Command,
    #[cfg(feature = "serve")]
    Proxy,
}

impl World {
    fn wasi(self) -> &'static [&'static str] {
        match self {
            World::Command => &WASI,
            #[cfg(feature = "serve")]
            World::Proxy => &WASI_PROXY,
        }
    }
}

/// The name under which a configuration knows the component.
pub(crate) fn name(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// A trap as a terminal may show it: names in it are the component's, and could hold whatever moves a cursor.
pub(crate) fn shown(error: &wasmtime::Error) -> String {
    let escaped = |c: char| if c == '\n' { c.to_string() } else { c.escape_debug().to_string() };
    let plain = |c: char| matches!(c, '\'' | '"' | '\\');
    format!("{error:?}").chars().map(|c| if plain(c) { c.to_string() } else { escaped(c) }).collect()
}

/// Counts the engine's epochs for as long as the engine is there, on a thread of its own: it must go on when all others are in guests.
pub(crate) fn clock(engine: &Engine, epoch: Duration) {
    let engine = engine.weak();
    std::thread::spawn(move || {
        while let Some(engine) = engine.upgrade() {
            engine.increment_epoch();
            drop(engine);
            std::thread::sleep(epoch);
        }
    });
}

/// Reads and compiles a component.
pub(crate) fn load(path: &Path, compiled: &Compiled) -> Result<Component, Failure> {
    let bytes = read(path)?;
    // Most components have no `async` function; with what serves them every host call costs about a third more.
    let component = compile(&bytes, false, compiled).or_else(|_| compile(&bytes, true, compiled));
    let component = component.map_err(|error| unaccepted(path, &error))?;
    compiled.tell();
    Ok(component)
}

/// Reads a component and compiles it for this engine, which was configured by `compiled`.
pub(crate) fn load_for(engine: &Engine, path: &Path, compiled: &Compiled) -> Result<Component, Failure> {
    let component = Component::new(engine, read(path)?).map_err(|error| unaccepted(path, &error))?;
    compiled.tell();
    Ok(component)
}

fn unaccepted(path: &Path, error: &wasmtime::Error) -> Failure {
    Failure::new(format!("{} is not a component that wasmtime accepts: {error:#}", path.display()))
}

/// The bytes of a component.
fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let shown = path.display();
    let bytes = std::fs::read(path).map_err(|error| Failure::new(format!("cannot read {shown}: {error}")))?;
    // Bytes 4..8 are version and layer: 1, 0 for a core module, 13, 1 for a component.
    match bytes.first_chunk::<8>() {
        Some([0, b'a', b's', b'm', _, _, 0, 0]) => {
            return Err(Failure::new(format!(
                "{shown} is a core WebAssembly module; kvasi runs components.\n  Make one of it: \
                 `wasm-tools component new MODULE.wasm --adapt wasi_snapshot_preview1.command.wasm -o COMPONENT.wasm`, \
                 or build for the target wasm32-wasip2"
            )));
        }
        Some([0, b'a', b's', b'm', _, _, 1, 0]) => {}
        _ => {
            return Err(Failure::new(format!(
                "{shown} is not WebAssembly: it does not begin with the bytes \"\\0asm\" of a component"
            )));
        }
    }
    Ok(bytes)
}

fn compile(bytes: &[u8], concurrent: bool, compiled: &Compiled) -> wasmtime::Result<Component> {
    let mut config = Config::new();
    compiled.configure(&mut config);
    config.concurrency_support(concurrent).wasm_component_model_implements(true);
    Component::new(&Engine::new(&config)?, bytes)
}

/// What the component imports of the store. Refuses a component that imports what is not served here, naming it and what is.
pub(crate) fn check_imports(path: &Path, component: &Component, world: World) -> Result<Shapes, Failure> {
    let refuse = |what: &str| {
        Failure::new(format!(
            "{} imports what kvasi does not serve:\n  {what}\n  Served: wasi:keyvalue@0.2.0-draft and @0.2.0-draft2, \
             wasmcloud:keyvalue@0.2.0; wasi:{{{}}} of WASI 0.2 and 0.3",
            path.display(),
            world.wasi().join(","),
        ))
    };
    let engine = component.engine();
    let shapes = Shapes::of(component, engine).map_err(|unknown| refuse(&unknown.to_string()))?;
    let ty = component.component_type();
    let unserved: Vec<String> = ty
        .imports(engine)
        .filter(|(name, _)| !shapes.serves(name))
        .filter_map(|(name, _)| unserved(name, world))
        .collect();
    if unserved.is_empty() { Ok(shapes) } else { Err(refuse(&unserved.join("\n  "))) }
}

/// What is wrong with an import of another package; `None` if it is served.
fn unserved(import: &str, world: World) -> Option<String> {
    let (path, version) = import.split_once('@').unwrap_or((import, ""));
    let (package, _) = path.split_once('/').unwrap_or((path, ""));
    match package.strip_prefix("wasi:") {
        Some(name) if world.wasi().contains(&name) && (version.starts_with("0.2.") || version.starts_with("0.3.")) => {
            None
        }
        Some(name) if world.wasi().contains(&name) => Some(format!("{import}: expected a version 0.2.x or 0.3.x")),
        _ => Some(import.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_are_told_apart() {
        for served in ["wasi:cli/environment@0.2.3", "wasi:io/streams@0.2.0", "wasi:clocks/types@0.3.0"] {
            assert_eq!(unserved(served, World::Command), None);
        }
        assert!(unserved("wasi:cli/run@0.4.0", World::Command).unwrap().contains("0.2.x"));
        assert!(unserved("wasi:http/types@0.2.0", World::Command).is_some());
        assert!(unserved("plain", World::Command).is_some());
    }

    #[test]
    fn what_a_component_names_its_functions_does_not_move_a_cursor() {
        let error = wasmtime::Error::msg("wasm trap in it's `\x1b[2Jmain`\nat \u{202e}end");
        let shown = shown(&error);
        assert!(shown.contains("it's `\\u{1b}[2Jmain`\nat \\u{202e}end"), "{shown}");
    }
}
