//! The parameters of a recipe, checked against the registry and evaluated tensor by tensor.

use super::{Recipe, RecipeError, Row, Setting, suggestion};
use crate::method::registry::{Entry, Kind, Parameter, Per, Preset};
use crate::method::{Value, Values};

/// Settings by name, in the order in which they were given.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters(Vec<(String, Setting)>);

impl Parameters {
    /// The setting of that name.
    pub fn get(&self, name: &str) -> Option<&Setting> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, setting)| setting)
    }

    /// The same with the defaults of all other parameters of a method, and in its order.
    pub(super) fn complete(&self, method: &Entry) -> Self {
        let setting = |parameter: &Parameter| {
            let given = self.get(parameter.name).cloned();
            let setting = given.or_else(|| preset(parameter).map(Setting::One))?;
            Some((parameter.name.to_owned(), setting))
        };
        Self(method.parameters.iter().filter_map(setting).collect())
    }

    /// Sets a parameter, in place of what it was before.
    pub fn set(&mut self, name: &str, setting: Setting) {
        self.0.retain(|(n, _)| n != name);
        self.0.push((name.to_owned(), setting));
    }

    /// Forgets a parameter.
    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(n, _)| n != name);
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Setting)> {
        self.0.iter().map(|(name, setting)| (name.as_str(), setting))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As YAML on one line.
    pub(super) fn to_yaml(&self) -> String {
        let all: Vec<String> =
            self.iter().map(|(name, setting)| format!("{name}: {setting}")).collect();
        all.join(", ")
    }
}

/// How far parameters reach that are set in one place of a recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// To one model.
    Model,
    /// To all models of a slice or a module.
    Part,
    /// To the whole merge.
    Merge,
}

/// Parameters, as one place of a recipe states them.
pub(super) struct Stated<'a> {
    /// Whose they are; nobody's if they are the recipe's own.
    pub(super) whose: Option<String>,
    /// What is stated.
    pub(super) parameters: &'a Parameters,
    /// How far it reaches.
    pub(super) reach: Reach,
    /// The slice it is stated in.
    pub(super) slice: Option<usize>,
}

/// A tensor to evaluate parameters for.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Its name in the output.
    pub tensor: &'a str,
    /// Its position: 0 in the first layer, 1 in the last, 0 outside layers.
    pub t: f64,
    /// Numbers for each model, in place of a parameter of the method: see [`Recipe::coefficients_of`].
    pub coefficients: Option<&'a [f64]>,
    /// The slice it belongs to; without meaning in a merge of whole models.
    pub slice: usize,
    /// Its name in each of the models, in the order of [`Recipe::rows`]; none if it is the same in all.
    pub names: &'a [Box<str>],
}

impl<'a> Place<'a> {
    /// A tensor of a merge of whole models.
    pub fn whole(tensor: &'a str, t: f64) -> Self {
        Self { tensor, t, coefficients: None, slice: 0, names: &[] }
    }
}

impl Recipe {
    /// The parameters that have one value for the whole merge.
    ///
    /// # Errors
    /// [`RecipeError::Value`] for values that do not fit.
    pub fn merge_values(&self) -> Result<Values, RecipeError> {
        let mut values = Values::default();
        for parameter in self.method.parameters.iter().filter(|p| p.per == Per::Merge) {
            let found = self.parameters.get(parameter.name).and_then(|s| s.at("", 0.0));
            let value = match found {
                Some(value) => typed(parameter, &value)?,
                None => preset(parameter).ok_or_else(|| missing(parameter, "this merge"))?,
            };
            values.shared.push((parameter.name, value));
        }
        Ok(values)
    }

    /// The parameters in one tensor: each model's own setting first, then what is said about all models,
    /// from the slice to the whole recipe, then the default. Filters of parameters that each model has are
    /// about names in the models, those of common ones about names in the output.
    ///
    /// # Errors
    /// [`RecipeError::Value`] for values that do not fit, and required ones that are missing.
    pub fn values(&self, place: Place<'_>) -> Result<Values, RecipeError> {
        let rows = self.rows(place.slice);
        let mut values = Values::new(rows.len());
        let evaluate = |parameter: &'static Parameter, own: Option<&Parameters>, name: &str| {
            let levels = own.into_iter().chain(self.levels(place.slice));
            let mut settings = levels.filter_map(|level| level.get(parameter.name));
            match settings.find_map(|setting| setting.at(name, place.t)) {
                Some(value) => typed(parameter, &value).map(Some),
                None => Ok(preset(parameter)),
            }
        };
        let lacks =
            |parameter, who: &str| missing(parameter, &format!("{who} in {}", place.tensor));
        for parameter in self.method.parameters {
            match parameter.per {
                Per::Merge => {}
                Per::Tensor => {
                    let value = evaluate(parameter, None, place.tensor)?;
                    let value = value.ok_or_else(|| lacks(parameter, "all models"))?;
                    values.shared.push((parameter.name, value));
                }
                Per::Model
                    if Some(parameter.name) == self.method.per_expert
                        && place.coefficients.is_some() =>
                {
                    let numbers = place.coefficients.unwrap_or_default();
                    for (expert, &number) in values.experts.iter_mut().zip(numbers) {
                        expert.push((parameter.name, typed(parameter, &Value::Number(number))?));
                    }
                }
                Per::Model => {
                    for (i, (expert, row)) in values.experts.iter_mut().zip(&rows).enumerate() {
                        let name = place.names.get(i).map_or(place.tensor, |name| name);
                        let value = evaluate(parameter, Some(row.parameters), name)?;
                        let who = || row.path.display().to_string();
                        let value = value.ok_or_else(|| lacks(parameter, &who()))?;
                        expert.push((parameter.name, value));
                    }
                }
            }
        }
        Ok(values)
    }

    /// All places where parameters are set.
    pub(super) fn stated(&self) -> Vec<Stated<'_>> {
        let state = |whose, parameters, reach, slice| Stated { whose, parameters, reach, slice };
        let mut places = vec![state(None, &self.parameters, Reach::Merge, None)];
        for module in &self.modules {
            let name = format!("module {}", module.name);
            places.push(state(Some(name), &module.parameters, Reach::Part, None));
        }
        for (number, slice) in self.slices.iter().enumerate() {
            let name = self.slice_name(number);
            for source in &slice.sources {
                let whose = format!("{} in {name}", source.path.display());
                places.push(state(Some(whose), &source.parameters, Reach::Model, Some(number)));
            }
            places.push(state(Some(name), &slice.parameters, Reach::Part, Some(number)));
        }
        for model in &self.models {
            let name = model.path.display().to_string();
            places.push(state(Some(name), &model.parameters, Reach::Model, None));
        }
        places
    }

    /// Checks all parameters against the registry; returns what looks suspicious.
    pub(super) fn check_parameters(&self) -> Result<Vec<String>, RecipeError> {
        let mut warnings = Vec::new();
        for place in self.stated() {
            self.check(&place, &mut warnings)?;
        }
        // Filters may leave gaps, which the tensors' names show: see `values`.
        for parameter in self.method.parameters.iter().filter(|p| p.preset == Preset::Required) {
            let in_file =
                self.coefficients.is_some() && self.method.per_expert == Some(parameter.name);
            for slice in 0..self.slices.len().max(1) {
                let stated = self.levels(slice).any(|level| level.get(parameter.name).is_some());
                if in_file || stated {
                    continue;
                }
                let place = match self.slices.len() {
                    0 => String::new(),
                    _ => format!(" in {}", self.slice_name(slice)),
                };
                let rows = self.rows(slice);
                let lacks = |row: &&Row<'_>| row.parameters.get(parameter.name).is_none();
                match (parameter.per, rows.iter().find(lacks)) {
                    (Per::Model, None) => {}
                    (Per::Model, Some(row)) => {
                        return Err(missing(parameter, &format!("{}{place}", row.path.display())));
                    }
                    (Per::Merge | Per::Tensor, _) => {
                        return Err(missing(parameter, &format!("this merge{place}")));
                    }
                }
            }
        }
        Ok(warnings)
    }

    fn check(&self, place: &Stated<'_>, warnings: &mut Vec<String>) -> Result<(), RecipeError> {
        for (name, setting) in place.parameters.iter() {
            self.check_setting(name, setting, place.reach)?;
            let Some(parameter) = self.method.parameter(name) else { continue };
            let Some(((least, most), why)) = parameter.usual else { continue };
            for value in setting.values() {
                let Value::Number(number) = typed(parameter, value)? else { continue };
                if !(least..=most).contains(&number) {
                    let of =
                        place.whose.as_ref().map_or_else(String::new, |who| format!(" of {who}"));
                    warnings.push(format!(
                        "{name} {number}{of} is unusual for {}: {why}",
                        self.method.name
                    ));
                }
            }
        }
        Ok(())
    }

    /// Checks one setting against the registry.
    pub(super) fn check_setting(
        &self,
        name: &str,
        setting: &Setting,
        reach: Reach,
    ) -> Result<(), RecipeError> {
        let Some(parameter) = self.method.parameter(name) else { return Err(self.unknown(name)) };
        let refuse = |reason: String| Err(RecipeError::Value { key: name.to_owned(), reason });
        if reach == Reach::Model && parameter.per != Per::Model {
            let reason = "it is one for all models; give it under the common parameters";
            return refuse(reason.to_owned());
        }
        if reach == Reach::Part && parameter.per == Per::Merge {
            let reason = "it is one for the whole merge; give it under the recipe's own parameters";
            return refuse(reason.to_owned());
        }
        if parameter.per == Per::Merge && !matches!(setting, Setting::One(_)) {
            return refuse("it is one for the whole merge: no gradient and no filter".to_owned());
        }
        setting.values().into_iter().try_for_each(|value| typed(parameter, value).map(drop))
    }

    /// The error about a parameter that the method does not have.
    pub(super) fn unknown(&self, name: &str) -> RecipeError {
        let known: Vec<&str> = self.method.parameters.iter().map(|p| p.name).collect();
        let meant = suggestion(name, known.iter().copied());
        let meant = meant.map_or_else(String::new, |meant| format!("; did you mean `{meant}`?"));
        let known = if known.is_empty() {
            "it has none".to_owned()
        } else {
            format!("known: {}", known.join(", "))
        };
        RecipeError::Value {
            key: name.to_owned(),
            reason: format!("{} has no such parameter; {known}{meant}", self.method.name),
        }
    }
}

fn missing(parameter: &Parameter, whose: &str) -> RecipeError {
    let reason = format!("it has no default and is missing for {whose}");
    RecipeError::Value { key: parameter.name.to_owned(), reason }
}

fn preset(parameter: &Parameter) -> Option<Value> {
    match parameter.preset {
        Preset::Required => None,
        Preset::Number(number) => Some(Value::Number(number)),
        Preset::Flag(flag) => Some(Value::Flag(flag)),
        Preset::Word(word) => Some(Value::Word(word.to_owned())),
    }
}

/// The value in the parameter's type. Words that are numbers (`1e-5` is a word to YAML 1.1) or flags
/// (`yes`) are understood.
fn typed(parameter: &Parameter, value: &Value) -> Result<Value, RecipeError> {
    let refuse =
        |reason: String| Err(RecipeError::Value { key: parameter.name.to_owned(), reason });
    let shown = match value {
        Value::Number(number) => number.to_string(),
        Value::Flag(flag) => flag.to_string(),
        Value::Word(word) => word.clone(),
    };
    let number = match value {
        Value::Number(number) => Some(*number),
        Value::Word(word) => word.trim().parse().ok(),
        // As in mergekit: the weight `yes` is 1.
        Value::Flag(flag) => Some(f64::from(u8::from(*flag))),
    };
    match parameter.kind {
        Kind::Number { least, most, open } => {
            let inside =
                |n: &f64| if open { *n > least && *n < most } else { *n >= least && *n <= most };
            match number.filter(|number| number.is_finite()) {
                Some(number) if inside(&number) => Ok(Value::Number(number)),
                _ if (least, most) == (0.0, 1.0) => {
                    let example = "0.1 means 10 %";
                    refuse(format!("{shown} is not a fraction between 0 and 1; {example}"))
                }
                None => refuse(format!("{shown:?} is not a number")),
                Some(n) if n <= least => refuse(format!("{n} is too small; the least is {least}")),
                Some(n) => refuse(format!("{n} is too large; the most is {most}")),
            }
        }
        Kind::Count { least, most } => match number {
            Some(n) if n.fract() == 0.0 && n >= f64::from(least) && n <= f64::from(most) => {
                Ok(Value::Number(n))
            }
            _ => refuse(format!("{shown:?} is not a whole number from {least} to {most}")),
        },
        Kind::Flag => match shown.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "y" | "1" => Ok(Value::Flag(true)),
            "false" | "no" | "off" | "n" | "0" => Ok(Value::Flag(false)),
            _ => refuse(format!("{shown:?} is neither true nor false")),
        },
        Kind::Word(words) if words.contains(&shown.as_str()) => Ok(Value::Word(shown)),
        Kind::Word(words) => {
            let meant = suggestion(&shown, words.iter().copied());
            let meant = meant.map_or_else(String::new, |meant| format!("; did you mean {meant}?"));
            refuse(format!("{shown:?} is unknown; known: {}{meant}", words.join(", ")))
        }
    }
}
