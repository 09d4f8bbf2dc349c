//! The component `watcher.wat` without its log, which a command does not serve.

#![allow(dead_code, reason = "without a service that tells of changes nobody needs it")]

pub(crate) fn watcher() -> Vec<u8> {
    wat::parse_str(text()).unwrap()
}

/// The same in form C: every function is `async`.
pub(crate) fn async_watcher() -> Vec<u8> {
    let functions = ["(type $set (func", "(type $delete (func", "(type $increment (func"];
    let text = functions.iter().fold(text(), |text, function| text.replace(function, &format!("{function} async")));
    wat::parse_str(
        text.replace("$on-set (param", "$on-set async (param").replace("$on-delete (param", "$on-delete async (param"),
    )
    .unwrap()
}

fn text() -> String {
    let source = include_str!("../watcher.wat");
    let lines = source.lines().filter(|line| !line.contains("(import \"log\"") && !line.contains("$log (canon"));
    let lines = lines.filter(|line| !line.contains("\"host\" \"log\"") && !line.contains("(call $log"));
    let silent: Vec<String> = lines.map(|line| line.replace("(export \"log\" (func $log))", "")).collect();
    silent.join("\n")
}
