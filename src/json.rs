//! JSON that means the same to every reader. Pure.
//!
//! Of a key that stands twice in an object, serde_json takes the last value and libxl the first
//! (libxl_json.c, `libxl__json_map_get`): what we have checked would not be what libxl does.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Whether no object of a JSON text has a key twice.
///
/// # Errors
///
/// If one has, or if it is no JSON.
pub fn check_keys(json: &str) -> serde_json::Result<()> {
    serde_json::from_str::<Unique>(json).map(|Unique| ())
}

/// A value of which nothing is kept.
struct Unique;

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Unique)
    }
}

impl<'de> Visitor<'de> for Unique {
    type Value = Unique;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Unique, E> {
        Ok(Unique)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Unique, E> {
        Ok(Unique)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Unique, E> {
        Ok(Unique)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Unique, E> {
        Ok(Unique)
    }

    fn visit_str<E>(self, _: &str) -> Result<Unique, E> {
        Ok(Unique)
    }

    fn visit_unit<E>(self) -> Result<Unique, E> {
        Ok(Unique)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Unique, A::Error> {
        while items.next_element::<Unique>()?.is_some() {}
        Ok(Unique)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Unique, A::Error> {
        let mut keys = BTreeSet::new();
        while let Some(key) = entries.next_key::<String>()? {
            if keys.contains(&key) {
                return Err(A::Error::custom(format_args!("the key {key:?} stands twice")));
            }
            keys.insert(key);
            entries.next_value::<Unique>()?;
        }
        Ok(Unique)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_stands_once_in_its_object() {
        for json in [r#"{"a": 1, "b": [{"a": null}, {"a": -1.5}], "c": {"a": "x"}}"#, "[true, {}]"]
        {
            check_keys(json).unwrap();
        }
        for json in [
            r#"{"a": 1, "a": 1}"#,
            r#"[{"b": {"a": 1, "c": 2, "a": 3}}]"#,
            // The same key, said otherwise.
            r#"{"a": 1, "\u0061": 2}"#,
        ] {
            let error = check_keys(json).unwrap_err().to_string();
            assert!(error.contains("the key \"a\" stands twice"), "{error}");
        }
        assert!(check_keys("{").is_err() && check_keys("{} {}").is_err());
        assert!(check_keys(&"[".repeat(100_000)).is_err());
    }
}
