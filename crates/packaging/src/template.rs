//! The part of Go's text/template and of Helm's functions that our chart uses, so that the chart is tested
//! where no helm is. What it does not know is an error, never passed over.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::{Result, yaml};

/// A parsed piece.
#[derive(Clone, Debug)]
enum Node {
    Text(String),
    Print(Pipe),
    Let(String, Pipe),
    If(Vec<(Option<Pipe>, Vec<Node>)>),
    With(Pipe, Vec<Node>),
    Range(Pipe, Vec<Node>),
}

/// Commands from left to right, each gets the result before it as its last argument.
type Pipe = Vec<Vec<Term>>;

#[derive(Clone, Debug)]
enum Term {
    Literal(Value),
    /// A variable (`$` is the root, the empty name the dot) and fields below it.
    Path(String, Vec<String>),
    Function(String),
    Group(Pipe),
}

/// Named templates.
#[derive(Debug, Default)]
pub struct Templates(BTreeMap<String, Vec<Node>>);

impl Templates {
    /// Adds a file: itself under `name`, and what it defines.
    ///
    /// # Errors
    /// The file is not understood.
    pub fn add(&mut self, name: &str, text: &str) -> Result<()> {
        let tokens = tokens(text).map_err(|error| format!("{name}: {error}"))?;
        let mut parser = Parser { tokens: &tokens, at: 0, defined: &mut self.0 };
        let (nodes, end) = parser.nodes().map_err(|error| format!("{name}: {error}"))?;
        if !end.is_empty() {
            return Err(format!("{name}: {end:?} closes nothing").into());
        }
        self.0.insert(name.to_owned(), nodes);
        Ok(())
    }

    /// Renders a template with `root` as its dot.
    ///
    /// # Errors
    /// What could not be evaluated.
    pub fn render(&self, name: &str, root: &Value) -> Result<String> {
        let nodes = self.0.get(name).ok_or_else(|| format!("no template {name:?}"))?;
        let mut scope = Scope { templates: self, variables: vec![(String::from("$"), root.clone())] };
        let mut out = String::new();
        scope.run(nodes, root, &mut out).map_err(|error| format!("{name}: {error}"))?;
        Ok(out)
    }
}

/// Texts and actions; an action begins with a zero byte.
fn tokens(text: &str) -> Result<Vec<String>> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("{{") {
        let (before, after) = (&rest[..at], &rest[at + 2..]);
        let end = after.find("}}").ok_or("an action does not end")?;
        let mut action = &after[..end];
        rest = &after[end + 2..];
        let mut before = before;
        if let Some(trimmed) = action.strip_prefix("- ").or_else(|| action.strip_prefix("-/")) {
            action = if action.starts_with("-/") { &action[1..] } else { trimmed };
            before = before.trim_end();
        }
        if let Some(trimmed) = action
            .strip_suffix(" -")
            .or_else(|| action.strip_suffix("/-").map(|_| &action[..action.len() - 1]))
        {
            action = trimmed;
            rest = rest.trim_start();
        }
        out.push(before.to_owned());
        if !action.trim_start().starts_with("/*") {
            out.push(format!("\0{}", action.trim()));
        }
    }
    out.push(rest.to_owned());
    Ok(out)
}

struct Parser<'a> {
    tokens: &'a [String],
    at: usize,
    defined: &'a mut BTreeMap<String, Vec<Node>>,
}

impl Parser<'_> {
    /// Up to an action that closes; gives that action, empty at the end of the file.
    fn nodes(&mut self) -> Result<(Vec<Node>, String)> {
        let mut out = Vec::new();
        while let Some(token) = self.tokens.get(self.at) {
            self.at += 1;
            let Some(action) = token.strip_prefix('\0') else {
                out.push(Node::Text(token.clone()));
                continue;
            };
            let (word, rest) = action.split_once(' ').unwrap_or((action, ""));
            match word {
                "end" | "else" => return Ok((out, action.to_owned())),
                "if" => {
                    let mut branches = Vec::new();
                    let mut condition = Some(pipe(rest)?);
                    loop {
                        let (body, end) = self.nodes()?;
                        branches.push((condition.take(), body));
                        match end.strip_prefix("else if ") {
                            Some(next) => condition = Some(pipe(next)?),
                            None if end == "else" => {}
                            None if end == "end" => break,
                            None => return Err(format!("if: {end:?} instead of end").into()),
                        }
                    }
                    out.push(Node::If(branches));
                }
                "with" | "range" => {
                    let (body, end) = self.nodes()?;
                    if end != "end" {
                        return Err(format!("{word}: {end:?} instead of end").into());
                    }
                    let over = pipe(rest)?;
                    out.push(if word == "with" { Node::With(over, body) } else { Node::Range(over, body) });
                }
                "define" => {
                    let (body, _) = self.nodes()?;
                    self.defined.insert(rest.trim_matches('"').to_owned(), body);
                }
                name if name.starts_with('$') && rest.starts_with(":= ") => {
                    out.push(Node::Let(name.to_owned(), pipe(&rest[3..])?));
                }
                _ => out.push(Node::Print(pipe(action)?)),
            }
        }
        Ok((out, String::new()))
    }
}

fn pipe(text: &str) -> Result<Pipe> {
    let words = words(text)?;
    let (pipe, rest) = commands(&words, false)?;
    if rest.is_empty() { Ok(pipe) } else { Err(format!("{text:?}: a bracket too many").into()) }
}

/// Words, strings with their quotes, brackets and bars.
fn words(text: &str) -> Result<Vec<String>> {
    let mut out = Vec::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            ' ' | '\n' | '\t' => {}
            '(' | ')' | '|' => out.push(c.to_string()),
            '"' => {
                let mut end = None;
                while let Some((at, c)) = chars.next() {
                    match c {
                        '\\' => drop(chars.next()),
                        '"' => {
                            end = Some(at);
                            break;
                        }
                        _ => {}
                    }
                }
                let end = end.ok_or_else(|| format!("{text:?}: a string does not end"))?;
                out.push(text[at..=end].to_owned());
            }
            _ => {
                let mut end = at + c.len_utf8();
                while let Some((at, c)) = chars.next_if(|(_, c)| !" \n\t()|".contains(*c)) {
                    end = at + c.len_utf8();
                }
                out.push(text[at..end].to_owned());
            }
        }
    }
    Ok(out)
}

/// Commands up to the end or, inside, to the closing bracket; gives the words behind it.
fn commands(words: &[String], inside: bool) -> Result<(Pipe, &[String])> {
    let mut out: Pipe = vec![Vec::new()];
    let mut rest = words;
    while let Some((word, after)) = rest.split_first() {
        rest = after;
        let term = match word.as_str() {
            ")" if inside => return Ok((out, rest)),
            "|" => {
                out.push(Vec::new());
                continue;
            }
            "(" => {
                let (group, after) = commands(rest, true)?;
                rest = after;
                Term::Group(group)
            }
            word => term(word)?,
        };
        out.last_mut().into_iter().for_each(|command| command.push(term.clone()));
    }
    if inside { Err("a bracket does not close".into()) } else { Ok((out, rest)) }
}

fn term(word: &str) -> Result<Term> {
    let fields = |text: &str| text.split('.').filter(|f| !f.is_empty()).map(str::to_owned).collect();
    if word.starts_with('"') {
        return Ok(Term::Literal(serde_json::from_str(word).map_err(|error| format!("{word}: {error}"))?));
    }
    if let Ok(number) = word.parse::<i64>() {
        return Ok(Term::Literal(json!(number)));
    }
    Ok(match word {
        "true" => Term::Literal(json!(true)),
        "false" => Term::Literal(json!(false)),
        "nil" => Term::Literal(Value::Null),
        _ if word.starts_with('.') => Term::Path(String::new(), fields(word)),
        _ if word.starts_with('$') => {
            let (name, path) = word.split_once('.').unwrap_or((word, ""));
            Term::Path(name.to_owned(), fields(path))
        }
        _ => Term::Function(word.to_owned()),
    })
}

struct Scope<'a> {
    templates: &'a Templates,
    variables: Vec<(String, Value)>,
}

impl Scope<'_> {
    fn run(&mut self, nodes: &[Node], dot: &Value, out: &mut String) -> Result<()> {
        for node in nodes {
            match node {
                Node::Text(text) => out.push_str(text),
                Node::Print(pipe) => out.push_str(&text(&self.pipe(pipe, dot)?)),
                Node::Let(name, pipe) => {
                    let value = self.pipe(pipe, dot)?;
                    self.variables.push((name.clone(), value));
                }
                Node::If(branches) => {
                    for (condition, body) in branches {
                        let holds = match condition {
                            Some(condition) => truth(&self.pipe(condition, dot)?),
                            None => true,
                        };
                        if holds {
                            self.block(body, dot, out)?;
                            break;
                        }
                    }
                }
                Node::With(pipe, body) => {
                    let value = self.pipe(pipe, dot)?;
                    if truth(&value) {
                        self.block(body, &value, out)?;
                    }
                }
                Node::Range(pipe, body) => match self.pipe(pipe, dot)? {
                    Value::Array(list) => list.iter().try_for_each(|item| self.block(body, item, out))?,
                    Value::Null => {}
                    other => return Err(format!("range over {other}, which is no list").into()),
                },
            }
        }
        Ok(())
    }

    /// Variables end with their block.
    fn block(&mut self, nodes: &[Node], dot: &Value, out: &mut String) -> Result<()> {
        let before = self.variables.len();
        self.run(nodes, dot, out)?;
        self.variables.truncate(before);
        Ok(())
    }

    fn pipe(&mut self, pipe: &Pipe, dot: &Value) -> Result<Value> {
        let mut result = None;
        for command in pipe {
            result = Some(self.command(command, dot, result)?);
        }
        result.ok_or_else(|| "an empty action".into())
    }

    fn command(&mut self, command: &[Term], dot: &Value, before: Option<Value>) -> Result<Value> {
        let (first, rest) = command.split_first().ok_or("an empty command")?;
        let Term::Function(name) = first else {
            return if rest.is_empty() && before.is_none() {
                self.term(first, dot)
            } else {
                Err(format!("{first:?} is no function").into())
            };
        };
        if name == "set" {
            return self.set(rest, dot);
        }
        let mut arguments = rest.iter().map(|term| self.term(term, dot)).collect::<Result<Vec<_>>>()?;
        arguments.extend(before);
        if name == "include" {
            let [Value::String(template), context] = arguments.as_slice() else {
                return Err("include needs a name and a value".into());
            };
            return Ok(Value::String(self.templates.render(template, context)?));
        }
        call(name, &arguments).map_err(|error| format!("{name}: {error}").into())
    }

    /// Maps are shared in Go: the variable itself changes.
    fn set(&mut self, terms: &[Term], dot: &Value) -> Result<Value> {
        let [Term::Path(variable, path), key, value] = terms else {
            return Err("set needs a variable, a key and a value".into());
        };
        let (key, value) = (text(&self.term(key, dot)?), self.term(value, dot)?);
        let found = self.variables.iter_mut().rev().find(|(name, _)| name == variable && path.is_empty());
        match found {
            Some((_, Value::Object(map))) => {
                map.insert(key, value);
                Ok(Value::Object(map.clone()))
            }
            _ => Err(format!("set: {variable} is no dictionary").into()),
        }
    }

    fn term(&mut self, term: &Term, dot: &Value) -> Result<Value> {
        match term {
            Term::Literal(value) => Ok(value.clone()),
            Term::Group(pipe) => self.pipe(pipe, dot),
            Term::Function(name) => call(name, &[]).map_err(|error| format!("{name}: {error}").into()),
            Term::Path(variable, path) => {
                let mut value = match variable.as_str() {
                    "" => dot,
                    name => {
                        let found = self.variables.iter().rev().find(|(n, _)| n == name);
                        &found.ok_or_else(|| format!("no variable {name}"))?.1
                    }
                };
                for field in path {
                    value = match value {
                        Value::Object(map) => map.get(field).unwrap_or(&Value::Null),
                        other => {
                            return Err(
                                format!("{other} has no field {field} (in .{})", path.join(".")).into()
                            );
                        }
                    };
                }
                Ok(value.clone())
            }
        }
    }
}

fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(on) => *on,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// As text/template prints.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn integer(value: &Value) -> i64 {
    match value {
        Value::Number(number) => number.as_i64().or_else(|| number.as_f64().map(|f| f as i64)).unwrap_or(0),
        Value::String(text) => text.parse().unwrap_or(0),
        Value::Bool(on) => i64::from(*on),
        _ => 0,
    }
}

/// `escape` as Go does within HTML.
fn json(value: &Value, pretty: bool) -> String {
    let plain = if pretty { format!("{value:#}") } else { value.to_string() };
    plain.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

fn call(name: &str, arguments: &[Value]) -> Result<Value> {
    let indented = |spaces: &Value, value: &Value| {
        let pad = " ".repeat(usize::try_from(integer(spaces)).unwrap_or(0));
        text(value).split('\n').map(|line| format!("{pad}{line}")).collect::<Vec<_>>().join("\n")
    };
    let one = || match arguments {
        [only] => Ok(only),
        _ => Err(format!("{} arguments, one is needed", arguments.len())),
    };
    let two = || match arguments {
        [a, b] => Ok((a, b)),
        _ => Err(format!("{} arguments, two are needed", arguments.len())),
    };
    let string = |text: String| Ok(Value::String(text));
    match name {
        "quote" => string(format!("{:?}", text(one()?))),
        "toString" => string(text(one()?)),
        "trim" => string(text(one()?).trim().to_owned()),
        "trimAll" => {
            let (cut, from) = two()?;
            let cut = text(cut);
            string(text(from).trim_matches(|c| cut.contains(c)).to_owned())
        }
        "toYaml" => string(yaml::write(one()?)),
        "toJson" => string(json(one()?, false)),
        "toPrettyJson" => string(json(one()?, true)),
        "int" => Ok(json!(integer(one()?))),
        "indent" => two().map_err(Into::into).and_then(|(n, value)| string(indented(n, value))),
        "nindent" => {
            two().map_err(Into::into).and_then(|(n, value)| string(format!("\n{}", indented(n, value))))
        }
        "default" => two()
            .map_err(Into::into)
            .map(|(given, value)| if truth(value) { value.clone() } else { given.clone() }),
        "contains" => two().map_err(Into::into).map(|(part, whole)| json!(text(whole).contains(&text(part)))),
        "not" => Ok(json!(!truth(one()?))),
        "ne" => two().map_err(Into::into).map(|(a, b)| json!(a != b)),
        "eq" => match arguments {
            [first, others @ ..] if !others.is_empty() => Ok(json!(others.contains(first))),
            _ => Err("two arguments are needed".into()),
        },
        "and" | "or" => {
            let wanted = name == "or";
            let decides = arguments.iter().find(|value| truth(value) == wanted);
            decides.or(arguments.last()).cloned().ok_or_else(|| "an argument is needed".into())
        }
        "dict" => {
            let pairs = arguments.chunks_exact(2).map(|pair| (text(&pair[0]), pair[1].clone()));
            Ok(Value::Object(pairs.collect::<Map<_, _>>()))
        }
        "printf" => {
            let (format, mut values) = match arguments.split_first() {
                Some((format, values)) => (text(format), values.iter()),
                None => return Err("a format is needed".into()),
            };
            let mut out = String::new();
            let mut rest = format.as_str();
            while let Some(at) = rest.find('%') {
                out.push_str(&rest[..at]);
                if !["s", "d"].iter().any(|verb| rest[at + 1..].starts_with(verb)) {
                    return Err(format!("{format:?}: only %s and %d are known").into());
                }
                out.push_str(&text(values.next().ok_or("too few values")?));
                rest = &rest[at + 2..];
            }
            string(out + rest)
        }
        "fail" => Err(text(one()?).into()),
        other => Err(format!("the function {other:?} is not known here").into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use super::*;

    /// Template and what Helm 3 prints for it, with `{"a":{"b":"x","n":3,"l":["p","q"],"e":{}},"s":"<&"}`.
    #[test]
    fn actions_give_what_helm_gives() {
        let root = json!({ "a": { "b": "x", "n": 3, "l": ["p", "q"], "e": {} }, "s": "<&" });
        for (template, expected) in [
            ("{{ .a.b }}-{{ .a.n }}", "x-3"),
            ("a  {{- if .a.e }} y {{- else if eq .a.b \"x\" }} x {{- end }}  b", "a x  b"),
            ("{{ range .a.l }}[{{ . }}{{ $.a.b }}]{{ end }}", "[px][qx]"),
            (
                "{{ with .a.e }}no{{ end }}{{ with .a.l }}{{ toYaml . | nindent 2 }}{{ end }}",
                "\n  - p\n  - q",
            ),
            ("{{ printf \"--p=%d\" (int .a.n) | quote }}", "\"--p=3\""),
            ("{{ .s | toJson }}", "\"\\u003c\\u0026\""),
            ("{{- /* note */ -}}\n x {{/* more */}}y", "x y"),
            (
                "{{- $d := dict \"k\" 1 }}{{- $_ := set $d \"j\" (int \"7\") }}{{ toJson $d }}",
                "{\"j\":7,\"k\":1}",
            ),
            ("{{ define \"t\" }}<{{ .b }}>{{ end }}{{ include \"t\" .a }}", "<x>"),
            ("{{ if and .a.b (not .a.e) }}1{{ end }}{{ if or .a.e .a.missing }}2{{ end }}", "1"),
            ("{{ default \"d\" .a.missing }}{{ contains \"x\" .a.b }}", "dtrue"),
        ] {
            let mut templates = Templates::default();
            templates.add("t.yaml", template).unwrap();
            assert_eq!(templates.render("t.yaml", &root).unwrap(), expected, "{template}");
        }
        for (template, error) in [
            ("{{ if .a }}", "instead of end"),
            ("{{ .a.b.c }}", "has no field c"),
            ("{{ lower .a.b }}", "not known here"),
            ("{{ fail \"no\" }}", "no"),
            ("{{ end }}", "closes nothing"),
        ] {
            let mut templates = Templates::default();
            let done = templates.add("t.yaml", template).and_then(|()| templates.render("t.yaml", &root));
            assert!(done.as_ref().is_err_and(|e| e.to_string().contains(error)), "{template}: {done:?}");
        }
    }
}
