//! Filters that do nothing: misspelt ones, and those behind a filter that takes all.

use super::{Filtered, Recipe, Setting};

/// A tensor by all its names.
#[derive(Clone, Copy, Debug)]
pub struct Named<'a> {
    /// Its name in the output.
    pub output: &'a str,
    /// The slice it belongs to.
    pub slice: usize,
    /// Its names in the models; none if they are the same.
    pub inputs: &'a [Box<str>],
}

impl<'a> Named<'a> {
    fn names(&self) -> impl Iterator<Item = &'a str> {
        [self.output].into_iter().chain(self.inputs.iter().map(|name| &**name))
    }
}

impl Recipe {
    /// The filters that decide about none of `tensors`, as sentences.
    pub fn idle_filters(&self, tensors: &[Named<'_>]) -> Vec<String> {
        let mut found = Vec::new();
        let stated = self.stated();
        let settings = stated.iter().flat_map(|place| {
            place.parameters.iter().map(move |(name, setting)| match &place.whose {
                Some(who) => (format!("{name} of {who}"), setting, place.slice),
                None => (name.to_owned(), setting, place.slice),
            })
        });
        for (whose, setting, slice) in settings {
            let Setting::Filtered(entries) = setting else { continue };
            for (i, entry) in entries.iter().enumerate() {
                let reached = tensors.iter().filter(|t| slice.is_none_or(|slice| t.slice == slice));
                let names = reached.flat_map(Named::names);
                let matching: Vec<&str> = names.filter(|name| entry.matches(name)).collect();
                let before = &entries[..i];
                let hidden = matching.iter().all(|t| before.iter().any(|other| other.matches(t)));
                if !hidden {
                    continue;
                }
                let shown = entry.filter.as_ref().filter(|filter| *filter != "*");
                let all = before.iter().any(Filtered::matches_all);
                found.push(match (shown, all) {
                    (Some(filter), _) if matching.is_empty() => {
                        format!("{whose}: the filter {filter:?} matches no tensor that is merged")
                    }
                    (Some(filter), true) => format!(
                        "{whose}: the filter {filter:?} is never used, since an entry before it matches \
                         all tensors; put it first"
                    ),
                    (Some(filter), false) => format!(
                        "{whose}: the filter {filter:?} is never used, since filters before it match all \
                         its tensors; put it before them"
                    ),
                    (None, true) => {
                        format!("{whose}: an entry without a filter follows another and is never used")
                    }
                    // What is left for a last entry may be nothing.
                    (None, false) => continue,
                });
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Model, mergekit};
    use super::*;

    fn idle(text: &str) -> Vec<String> {
        let mut model = Model::new("x");
        model.parameters.set("lambda", mergekit::setting("lambda", text).unwrap());
        let method = Recipe::method("pcb", None).unwrap();
        let recipe = Recipe::new(method, Some("b".into()), vec![model]);
        let named = |output| Named { output, slice: 0, inputs: &[] };
        recipe.idle_filters(&["embed", "layers.0.mlp.up", "layers.0.attn.q"].map(named))
    }

    #[test]
    fn filters_that_decide_nothing_are_named() {
        for (text, filter, why) in [
            ("{filter: mpl, value: 1}", "\"mpl\"", "matches no tensor"),
            ("[{filter: 'm*p', value: 1}, {value: 2}]", "\"m*p\"", "matches no tensor"),
            ("[{value: 1}, {filter: mlp, value: 2}]", "\"mlp\"", "an entry before it matches all"),
            ("[{filter: '*', value: 1}, {filter: mlp, value: 2}]", "\"mlp\"", "matches all"),
            ("[{filter: '', value: 1}, {filter: mlp, value: 2}]", "\"mlp\"", "matches all"),
            (
                "[{filter: mlp, value: 1}, {filter: mlp.up, value: 2}]",
                "\"mlp.up\"",
                "put it before",
            ),
            ("[{value: 1}, {filter: '*', value: 2}]", "without a filter", "never used"),
        ] {
            let found = idle(text);
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert!(found[0].starts_with("lambda of x: "), "{found:?}");
            assert!(found[0].contains(filter) && found[0].contains(why), "{text}: {found:?}");
        }
    }

    #[test]
    fn filters_that_decide_something_are_not() {
        for text in [
            "1",
            "[0, 1]",
            "{filter: mlp, value: 1}",
            "[{filter: mlp, value: 1}, {filter: layers, value: 2}, {value: 3}]",
            "[{filter: layers, value: 1}, {filter: embed, value: 2}, {value: 3}]",
        ] {
            assert!(idle(text).is_empty(), "{text}: {:?}", idle(text));
        }
    }
}
