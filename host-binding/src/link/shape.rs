//! Which shapes of the interface a component imports: told by what its imports are called and by the types of their functions.
//!
//! Flow: component -> [`Shapes::of`] -> one [`Import`] for each -> `link`, which adds that and no more.
//! Invariants: 1. An import is served as the shape whose types it has, to the letter, or refused with what was expected and
//! what was found. 2. Imports of other packages are none of our business.
//!
//! Types and not names: three shapes have one name, `wasi:keyvalue@0.2.0-draft2`, and a component knows only its own.

use super::signatures;
use std::fmt;
use wasmtime::Engine;
use wasmtime::component::Component;
use wasmtime::component::types::{ComponentFunc, ComponentInstance, ComponentItem, Type};

/// An interface of the packages that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interface {
    Types,
    Store,
    Atomics,
    Cas,
    Batch,
}

impl Interface {
    const ALL: [Interface; 5] =
        [Interface::Types, Interface::Store, Interface::Atomics, Interface::Cas, Interface::Batch];

    pub(super) fn name(self) -> &'static str {
        match self {
            Interface::Types => "types",
            Interface::Store => "store",
            Interface::Atomics => "atomics",
            Interface::Cas => "cas",
            Interface::Batch => "batch",
        }
    }
}

/// A function of a shape: its interface, its name, its type as [`text`] writes it.
pub(super) type Call = (Interface, &'static str, &'static str);

/// A shape of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Draft,
    Draft2A,
    Draft2B,
    Draft2C,
    Wasmcloud,
}

impl Shape {
    pub(super) const ALL: [Shape; 5] = [Shape::Draft2A, Shape::Draft2B, Shape::Draft2C, Shape::Draft, Shape::Wasmcloud];

    fn package(self) -> (&'static str, &'static str) {
        match self {
            Shape::Draft => (signatures::WASI, signatures::WASI_DRAFT),
            Shape::Draft2A | Shape::Draft2B | Shape::Draft2C => (signatures::WASI, signatures::WASI_DRAFT2),
            Shape::Wasmcloud => (signatures::WASMCLOUD, signatures::WASMCLOUD_VERSION),
        }
    }

    /// Whether its functions are `async`.
    pub(super) fn is_async(self) -> bool {
        matches!(self, Shape::Draft2C | Shape::Wasmcloud)
    }

    fn calls(self) -> &'static [Call] {
        match self {
            Shape::Draft => signatures::DRAFT,
            Shape::Draft2A | Shape::Draft2B | Shape::Draft2C => signatures::DRAFT2,
            Shape::Wasmcloud => signatures::WASMCLOUD_CALLS,
        }
    }

    /// The type of the function of that name; `None` if the shape has none.
    fn call(self, interface: Interface, name: &str) -> Option<String> {
        let (_, _, text) = self.calls().iter().find(|(of, call, _)| *of == interface && *call == name)?;
        Some(match self {
            Shape::Draft2B if name == "get-many" => signatures::GET_MANY_OF_B.to_owned(),
            Shape::Draft2C | Shape::Wasmcloud => format!("async {text}"),
            _ => (*text).to_owned(),
        })
    }

    fn has(self, interface: Interface) -> bool {
        self.calls().iter().any(|(of, ..)| *of == interface)
    }

    /// Its interfaces.
    pub(super) fn interfaces(self) -> impl Iterator<Item = Interface> {
        Interface::ALL.into_iter().filter(move |&interface| self.has(interface))
    }

    fn error(self) -> &'static str {
        if self == Shape::Wasmcloud { signatures::WASMCLOUD_ERROR } else { signatures::WASI_ERROR }
    }

    /// The name of an interface of it, in full.
    pub(super) fn interface(self, interface: Interface) -> String {
        let (package, version) = self.package();
        format!("{package}/{}@{version}", interface.name())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (package, version) = self.package();
        let form = match self {
            Shape::Draft | Shape::Wasmcloud => "",
            Shape::Draft2A => " form A",
            Shape::Draft2B => " form B",
            Shape::Draft2C => " form C",
        };
        write!(f, "{package}@{version}{form}")
    }
}

/// One import of a component that is to be served.
#[derive(Clone, Debug)]
pub(super) struct Import {
    /// What the component calls it: the interface's own name, or a label.
    pub(super) name: String,
    pub(super) is_label: bool,
    pub(super) interface: Interface,
    pub(super) shape: Shape,
}

/// What a component imports of the key-value interfaces, and in which shapes.
#[derive(Clone, Debug, Default)]
pub struct Shapes {
    pub(super) imports: Vec<Import>,
}

/// An import that has none of the shapes that are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownShape {
    import: String,
    reason: String,
}

impl fmt::Display for UnknownShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not served: {}", self.import, self.reason)
    }
}

impl std::error::Error for UnknownShape {}

impl Shapes {
    /// The shapes of what `component` imports; none if it imports no key-value interface.
    ///
    /// # Errors
    /// An import of `wasi:keyvalue` or `wasmcloud:keyvalue` that has none of the shapes that are served: the interface, version or
    /// function, what was expected of it, and what was found.
    pub fn of(component: &Component, engine: &Engine) -> Result<Shapes, UnknownShape> {
        let ty = component.component_type();
        let mut imports = Vec::new();
        for (name, item) in ty.imports(engine) {
            let interface = item.implements.unwrap_or(name);
            let ComponentItem::ComponentInstance(instance) = &item.ty else { continue };
            let unknown = |reason| UnknownShape { import: name.to_owned(), reason };
            let Some((interface, candidates)) = named(interface).map_err(unknown)? else { continue };
            let shape = matching(engine, instance, interface, &candidates).map_err(unknown)?;
            imports.push(Import { name: name.to_owned(), is_label: item.implements.is_some(), interface, shape });
        }
        Ok(Shapes { imports })
    }

    /// Whether some of the functions are `async`: then the host calls the component asynchronously, with concurrency on.
    pub fn is_async(&self) -> bool {
        self.imports.iter().any(|import| import.shape.is_async())
    }

    /// The labels of labelled imports.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        self.imports.iter().filter(|import| import.is_label).map(|import| &*import.name)
    }

    /// Whether there is nothing to serve.
    pub fn is_empty(&self) -> bool {
        self.imports.is_empty()
    }

    /// Whether `import`, as the component names it, is one of these.
    pub fn serves(&self, import: &str) -> bool {
        self.imports.iter().any(|served| served.name == import)
    }
}

impl fmt::Display for Shapes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut seen: Vec<Shape> = Vec::new();
        for import in &self.imports {
            if seen.contains(&import.shape) {
                continue;
            }
            let comma = if seen.is_empty() { "" } else { ", " };
            write!(f, "{comma}{}", import.shape)?;
            seen.push(import.shape);
        }
        Ok(())
    }
}

/// The interface of that name and the shapes that have it; `None` if it is of another package.
fn named(name: &str) -> Result<Option<(Interface, Vec<Shape>)>, String> {
    let (path, version) = name.split_once('@').unwrap_or((name, ""));
    let Some((package, interface)) = path.split_once('/') else { return Ok(None) };
    let of_package: Vec<Shape> = Shape::ALL.into_iter().filter(|shape| shape.package().0 == package).collect();
    if of_package.is_empty() {
        return Ok(None);
    }
    let of_version: Vec<Shape> = of_package.iter().copied().filter(|shape| shape.package().1 == version).collect();
    if of_version.is_empty() {
        let mut versions: Vec<&str> = of_package.iter().map(|shape| shape.package().1).collect();
        versions.dedup();
        let found = if version.is_empty() { "none" } else { version };
        return Err(format!("expected version {}, found {found}", versions.join(" or ")));
    }
    let known = Interface::ALL.into_iter().find(|known| known.name() == interface);
    match known.filter(|&known| of_version.iter().any(|shape| shape.has(known))) {
        Some(known) => Ok(Some((known, of_version.into_iter().filter(|shape| shape.has(known)).collect()))),
        None => {
            let has = |known: &Interface| of_version.iter().any(|shape| shape.has(*known));
            let names: Vec<&str> = Interface::ALL.iter().filter(|known| has(known)).map(|known| known.name()).collect();
            Err(format!("expected one of the interfaces {}, found {interface}", names.join(", ")))
        }
    }
}

/// The first of the candidates that has every function of the import, with its type.
fn matching(
    engine: &Engine,
    instance: &ComponentInstance,
    interface: Interface,
    candidates: &[Shape],
) -> Result<Shape, String> {
    let functions: Vec<(&str, ComponentFunc)> = instance
        .exports(engine)
        .filter_map(|(name, item)| match item.ty {
            ComponentItem::ComponentFunc(function) => Some((name, function)),
            _ => None,
        })
        .collect();
    let misfit = |shape: Shape| {
        functions.iter().find_map(|(name, function)| {
            let found = text(function, shape.error());
            match shape.call(interface, name) {
                Some(expected) if expected == found => None,
                expected => Some((*name, expected, found)),
            }
        })
    };
    let mut misfits = Vec::new();
    for &shape in candidates {
        let Some(misfit) = misfit(shape) else { return Ok(shape) };
        misfits.push((shape, misfit));
    }
    let reasons = misfits.into_iter().map(|(shape, (name, expected, found))| match expected {
        Some(expected) => format!("{shape} expects {name}: {expected}; found {found}"),
        None => format!("{shape} has no function {name}; found {found}"),
    });
    Err(reasons.collect::<Vec<_>>().join("\n    "))
}

/// The type of a function in the words of WIT, without the names of parameters and resources; `error` for the type `error`.
fn text(function: &ComponentFunc, error: &str) -> String {
    let params: Vec<String> = function.params().map(|(_, ty)| type_text(&ty, error)).collect();
    let results: Vec<String> = function.results().map(|ty| type_text(&ty, error)).collect();
    let pace = if function.async_() { "async " } else { "" };
    let arrow = if results.is_empty() { "" } else { " -> " };
    format!("{pace}func({}){arrow}{}", params.join(", "), results.join(", "))
}

fn type_text(ty: &Type, error: &str) -> String {
    let text = |ty: &Type| type_text(ty, error);
    let optional = |ty: Option<Type>| ty.as_ref().map_or_else(|| "_".to_owned(), text);
    match ty {
        Type::Bool => "bool".to_owned(),
        Type::S8 => "s8".to_owned(),
        Type::U8 => "u8".to_owned(),
        Type::S16 => "s16".to_owned(),
        Type::U16 => "u16".to_owned(),
        Type::S32 => "s32".to_owned(),
        Type::U32 => "u32".to_owned(),
        Type::S64 => "s64".to_owned(),
        Type::U64 => "u64".to_owned(),
        Type::Float32 => "f32".to_owned(),
        Type::Float64 => "f64".to_owned(),
        Type::Char => "char".to_owned(),
        Type::String => "string".to_owned(),
        Type::List(list) => format!("list<{}>", text(&list.ty())),
        Type::Option(option) => format!("option<{}>", text(&option.ty())),
        Type::Tuple(tuple) => {
            format!("tuple<{}>", tuple.types().map(|ty| text(&ty)).collect::<Vec<_>>().join(", "))
        }
        Type::Result(result) => match (result.ok(), result.err()) {
            (None, None) => "result".to_owned(),
            (ok, None) => format!("result<{}>", optional(ok)),
            (ok, err) => format!("result<{}, {}>", optional(ok), optional(err)),
        },
        Type::Record(record) => {
            let fields = record.fields().map(|field| format!("{}: {}", field.name, text(&field.ty)));
            format!("record{{{}}}", fields.collect::<Vec<_>>().join(", "))
        }
        Type::Variant(variant) => {
            let cases = variant.cases().map(|case| match &case.ty {
                None => case.name.to_owned(),
                Some(ty) => format!("{}({})", case.name, text(ty)),
            });
            let whole = format!("variant{{{}}}", cases.collect::<Vec<_>>().join(", "));
            if whole == error { "error".to_owned() } else { whole }
        }
        Type::Enum(names) => format!("enum{{{}}}", names.names().collect::<Vec<_>>().join(", ")),
        Type::Flags(names) => format!("flags{{{}}}", names.names().collect::<Vec<_>>().join(", ")),
        Type::Own(_) => "own".to_owned(),
        Type::Borrow(_) => "borrow".to_owned(),
        // None of ours: streams, futures, and what later versions bring.
        other => format!("{other:?}").to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_told_apart_by_package_version_and_name() {
        assert_eq!(named("wasi:cli/run@0.2.0"), Ok(None));
        assert_eq!(named("plain"), Ok(None));
        let (interface, shapes) = named("wasi:keyvalue/batch@0.2.0-draft2").unwrap().unwrap();
        assert_eq!((interface, shapes), (Interface::Batch, vec![Shape::Draft2A, Shape::Draft2B, Shape::Draft2C]));
        let (interface, shapes) = named("wasmcloud:keyvalue/cas@0.2.0").unwrap().unwrap();
        assert_eq!((interface, shapes), (Interface::Cas, vec![Shape::Wasmcloud]));
        let error = named("wasi:keyvalue/store@0.2.0").unwrap_err();
        assert!(error.contains("0.2.0-draft2 or 0.2.0-draft") && error.contains("found 0.2.0"), "{error}");
        let error = named("wasi:keyvalue/cas@0.2.0-draft2").unwrap_err();
        assert!(error.contains("store, atomics, batch") && error.contains("found cas"), "{error}");
        assert!(named("wasi:keyvalue/store").unwrap_err().contains("found none"));
    }

    /// A component that imports `interface` with one function, whose type is given in the text format.
    fn import(interface: &str, types: &str, name: &str, function: &str) -> Result<Shapes, UnknownShape> {
        let engine = Engine::default();
        let text = format!(
            r#"(component (import "{interface}" (instance
                (export "bucket" (type $bucket (sub resource)))
                {types}
                (export "{name}" (func {function})))))"#
        );
        let component = Component::new(&engine, wat::parse_str(text).unwrap()).unwrap();
        Shapes::of(&component, &engine)
    }

    const ERROR: &str = r#"(type $e' (variant (case "no-such-store") (case "access-denied") (case "other" string)))
        (export "error" (type $e (eq $e')))"#;

    #[test]
    fn the_three_forms_of_one_name_are_told_apart_by_their_types() {
        let batch = "wasi:keyvalue/batch@0.2.0-draft2";
        let params = r#"(param "bucket" (borrow $bucket)) (param "keys" (list string))"#;
        let a = format!("{params} (result (result (list (option (tuple string (list u8)))) (error $e)))");
        assert_eq!(import(batch, ERROR, "get-many", &a).unwrap().to_string(), "wasi:keyvalue@0.2.0-draft2 form A");
        let b = format!("{params} (result (result (list (tuple string (option (list u8)))) (error $e)))");
        assert_eq!(import(batch, ERROR, "get-many", &b).unwrap().to_string(), "wasi:keyvalue@0.2.0-draft2 form B");
        let c = import(batch, ERROR, "get-many", &format!("async {a}")).unwrap();
        assert_eq!(c.to_string(), "wasi:keyvalue@0.2.0-draft2 form C");
        assert!(c.is_async());
    }

    #[test]
    fn a_type_of_no_shape_is_named_with_what_was_expected() {
        let batch = "wasi:keyvalue/batch@0.2.0-draft2";
        let odd = r#"(param "keys" (list string)) (result (result (list u8) (error $e)))"#;
        let error = import(batch, ERROR, "get-many", odd).unwrap_err().to_string();
        assert!(error.contains(batch), "{error}");
        assert!(error.contains("found func(list<string>) -> result<list<u8>, error>"), "{error}");
        assert!(error.contains("form A expects get-many: func(borrow, list<string>)"), "{error}");
        let error = import(batch, ERROR, "count", r#"(result u64)"#).unwrap_err().to_string();
        assert!(error.contains("has no function count; found func() -> u64"), "{error}");
    }

    #[test]
    fn a_cursor_of_the_other_draft_is_no_match() {
        let list = |cursor: &str| {
            let types = format!(
                r#"{ERROR} (type $r' (record (field "keys" (list string)) (field "cursor" (option {cursor}))))
                (export "key-response" (type $r (eq $r')))"#
            );
            let function = format!(
                r#"(param "self" (borrow $bucket)) (param "cursor" (option {cursor})) (result (result $r (error $e)))"#
            );
            (types, function)
        };
        let (types, function) = list("u64");
        let shapes = import("wasi:keyvalue/store@0.2.0-draft", &types, "[method]bucket.list-keys", &function).unwrap();
        assert_eq!(shapes.to_string(), "wasi:keyvalue@0.2.0-draft");
        assert!(import("wasi:keyvalue/store@0.2.0-draft2", &types, "[method]bucket.list-keys", &function).is_err());
        let (types, function) = list("string");
        assert!(import("wasi:keyvalue/store@0.2.0-draft", &types, "[method]bucket.list-keys", &function).is_err());
    }
}
