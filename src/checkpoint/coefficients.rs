//! Files of coefficients: numbers for each expert, tensor by tensor.
//!
//! ```text
//! {"model.layers.0.mlp.up_proj.weight": [0.3, 0.1], "*.bias": [0, 0.5], "*": [0.3, 0.3]}
//! [0.3, 0.1]                                  one row for all tensors
//! [[1, 0.3, 0.1], [1, 0.2, 0.4], ..]          a row for each tensor, in an order told by another file
//! ```
//! The same as safetensors: vectors by name, or one matrix. `docs/formats.md` has the rules.

use std::fmt;

use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde_json::from_slice;

use super::header::Header;
use super::json::Entries;

/// What a file of coefficients says.
#[derive(Clone, Debug, PartialEq)]
pub enum Coefficients {
    /// Numbers by tensor name or pattern, in the order of the file.
    Named(Vec<(String, Vec<f64>)>),
    /// Rows of numbers: one for all tensors, or one for each in an order told elsewhere.
    Rows(Vec<Vec<f64>>),
}

impl Coefficients {
    /// Reads a file's bytes, JSON or safetensors.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let read = match safetensors(bytes) {
            Some((header, data)) => tensors(header, data)?,
            None => match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
                Some(b'{') => {
                    let named: Entries<Vec<f64>> = from_slice(bytes).map_err(|e| json(&e))?;
                    Self::Named(named.0)
                }
                Some(b'[') => {
                    let rows: Vec<Item> = from_slice(bytes).map_err(|e| json(&e))?;
                    Self::Rows(by_rows(rows)?)
                }
                _ => return Err("it is neither JSON nor safetensors".to_owned()),
            },
        };
        read.finite()
    }

    fn finite(self) -> Result<Self, String> {
        let wrong = |numbers: &[f64]| numbers.iter().find(|number| !number.is_finite()).copied();
        let found = match &self {
            Self::Named(named) => {
                named.iter().find_map(|(name, row)| Some((name.clone(), wrong(row)?)))
            }
            Self::Rows(rows) => {
                let row =
                    |(i, row): (usize, &Vec<f64>)| Some((format!("row {}", i + 1), wrong(row)?));
                rows.iter().enumerate().find_map(row)
            }
        };
        match found {
            Some((place, number)) => Err(format!("{place}: {number} is not a finite number")),
            None => Ok(self),
        }
    }
}

/// Names in the order of the rows of a file of coefficients: one a line, or a JSON list.
///
/// # Errors
/// What is wrong.
pub fn parse_order(bytes: &[u8]) -> Result<Vec<String>, String> {
    let names: Vec<String> = if bytes.trim_ascii_start().first() == Some(&b'[') {
        from_slice(bytes).map_err(|e| json(&e))?
    } else {
        let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".to_owned())?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        lines.map(str::to_owned).collect()
    };
    let mut sorted: Vec<&str> = names.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    match sorted.array_windows().find(|[a, b]| a == b) {
        Some([twice, _]) => Err(format!("it names {twice:?} twice")),
        None => Ok(names),
    }
}

fn json(error: &serde_json::Error) -> String {
    format!(
        "{error}; it must be {{\"TENSOR\": [one number per expert], ..}}, or a list of such lists with \
         an order file"
    )
}

/// Header and data of a safetensors file, if it is one. No JSON text begins with so small a length.
fn safetensors(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (header, data) = rest.split_at_checked(length)?;
    (header.first() == Some(&b'{')).then_some((header, data))
}

fn tensors(header: &[u8], data: &[u8]) -> Result<Coefficients, String> {
    let header = Header::parse(header, data.len() as u64, false).map_err(|e| e.to_string())?;
    let mut named = Vec::new();
    for entry in &header.entries {
        let range = entry.start as usize..entry.end as usize;
        let numbers: Vec<f64> = match entry.dtype.to_string().as_str() {
            "F32" => {
                let (each, _) = data[range].as_chunks();
                each.iter().map(|b| f32::from_le_bytes(*b).into()).collect()
            }
            "F64" => data[range].as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
            other => {
                return Err(format!(
                    "tensor {:?} is of type {other}; store F32 or F64",
                    entry.name
                ));
            }
        };
        match (&*entry.shape, header.entries.len()) {
            ([_], _) => named.push((entry.name.to_string(), numbers)),
            ([_, row], 1) => {
                let rows = numbers.chunks((*row as usize).max(1));
                return Ok(Coefficients::Rows(rows.map(<[f64]>::to_vec).collect()));
            }
            (shape, _) => {
                return Err(format!(
                    "tensor {:?} has the shape {shape:?}; store one number per expert, [n], or a single \
                     matrix with an order file",
                    entry.name
                ));
            }
        }
    }
    Ok(Coefficients::Named(named))
}

/// An item of a list: a number or a row of them.
enum Item {
    Number(f64),
    Row(Vec<f64>),
}

fn by_rows(items: Vec<Item>) -> Result<Vec<Vec<f64>>, String> {
    let (mut rows, mut single) = (Vec::new(), Vec::new());
    for item in items {
        match item {
            Item::Row(row) => rows.push(row),
            Item::Number(number) => single.push(number),
        }
    }
    match (rows.is_empty(), single.is_empty()) {
        (_, true) => Ok(rows),
        (true, false) => Ok(vec![single]),
        (false, false) => Err("it mixes numbers and lists of numbers".to_owned()),
    }
}

impl<'de> serde::Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ItemVisitor)
    }
}

struct ItemVisitor;

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number or a list of numbers")
    }

    fn visit_f64<E>(self, number: f64) -> Result<Item, E> {
        Ok(Item::Number(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Item, E> {
        Ok(Item::Number(number as f64))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Item, E> {
        Ok(Item::Number(number as f64))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Item, A::Error> {
        let mut row = Vec::new();
        while let Some(number) = list.next_element()? {
            if row.len() >= 1 << 20 {
                return Err(A::Error::custom("a row is too long"));
            }
            row.push(number);
        }
        Ok(Item::Row(row))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Coefficients, String> {
        Coefficients::parse(text.as_bytes())
    }

    /// A safetensors file of vectors and matrices of f32.
    fn file(tensors: &[(&str, &[usize], &[f32])]) -> Vec<u8> {
        let views = tensors.iter().map(|(name, shape, values)| {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            (*name, shape.to_vec(), bytes)
        });
        let views: Vec<_> = views.collect();
        let views = views.iter().map(|(name, shape, bytes)| {
            let view =
                safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
            (*name, view.unwrap())
        });
        safetensors::serialize(views, None).unwrap()
    }

    #[test]
    fn all_forms_are_read() {
        let named = |pairs: &[(&str, &[f64])]| {
            let pairs = pairs.iter().map(|(name, row)| ((*name).to_owned(), row.to_vec()));
            Ok(Coefficients::Named(pairs.collect()))
        };
        let rows =
            |rows: &[&[f64]]| Ok(Coefficients::Rows(rows.iter().map(|row| row.to_vec()).collect()));
        assert_eq!(
            parsed("{\"b\": [1, 0.5], \"a*\": [2, -3]}"),
            named(&[("b", &[1.0, 0.5]), ("a*", &[2.0, -3.0])])
        );
        assert_eq!(parsed(" [0.3, 1]"), rows(&[&[0.3, 1.0]]));
        assert_eq!(parsed("[[1, 0.3], [1, 2]]"), rows(&[&[1.0, 0.3], &[1.0, 2.0]]));
        let vectors = file(&[("a", &[2], &[0.5, 1.0]), ("b", &[2], &[2.0, 3.0])]);
        assert_eq!(Coefficients::parse(&vectors), named(&[("a", &[0.5, 1.0]), ("b", &[2.0, 3.0])]));
        let matrix = file(&[("lambdas", &[2, 3], &[1.0, 0.5, 2.0, 1.0, 0.25, 4.0])]);
        assert_eq!(Coefficients::parse(&matrix), rows(&[&[1.0, 0.5, 2.0], &[1.0, 0.25, 4.0]]));
    }

    #[test]
    fn what_is_neither_is_refused_with_the_reason() {
        for (text, part) in [
            ("", "neither JSON nor safetensors"),
            ("name: [1]", "neither JSON nor safetensors"),
            ("{\"a\": [1], \"a\": [2]}", "occurs twice"),
            ("{\"a\": 1}", "it must be {\"TENSOR\""),
            ("{\"a\": [\"x\"]}", "line 1"),
            ("[1, [2]]", "mixes numbers and lists"),
            ("[[[1]]]", "line 1"),
            ("{\"a\": [1e400]}", "number out of range"),
            ("{\"a\": [null]}", "line 1"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        let error = Coefficients::parse(&file(&[("a", &[1], &[f32::NAN])])).unwrap_err();
        assert!(error.contains("a: NaN is not a finite number"), "{error}");
        let cube = file(&[("a", &[1, 1, 1], &[1.0])]);
        assert!(Coefficients::parse(&cube).unwrap_err().contains("[1, 1, 1]"));
        let two = file(&[("a", &[1, 1], &[1.0]), ("b", &[1], &[1.0])]);
        assert!(Coefficients::parse(&two).unwrap_err().contains("a single matrix"));
        assert!(Coefficients::parse(&cube[..cube.len() - 1]).is_err());
    }

    #[test]
    fn an_order_is_a_list_of_different_names() {
        let order = |text: &str| parse_order(text.as_bytes());
        assert_eq!(order("b\n a \n\n"), Ok(vec!["b".to_owned(), "a".to_owned()]));
        assert_eq!(order("[\"b\", \"a\"]"), Ok(vec!["b".to_owned(), "a".to_owned()]));
        assert!(order("a\nb\na").unwrap_err().contains("\"a\" twice"));
        assert!(order("[1]").is_err() && parse_order(b"\xff").is_err());
    }
}
