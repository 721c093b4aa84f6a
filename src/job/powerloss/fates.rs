//! What may become of changes that are not durable.

use super::disk::{Fate, Op};
use crate::job::scene::Random;

use Fate::{Dropped, Garbage, Kept, Torn, Zeros};

/// Ways in which these changes may have arrived, those that break most first: all of them if there are at
/// most `combined` changes, else a sample. Then some in which writes have arrived in part.
pub(super) fn fates(changes: &[&Op], combined: usize, random: &mut Random) -> Vec<Vec<Fate>> {
    let count = changes.len();
    if count == 0 {
        return vec![Vec::new()];
    }
    let but = |i: usize, most, one| {
        let mut fates = vec![most; count];
        fates[i] = one;
        fates
    };
    let mut all = vec![
        vec![Dropped; count],
        vec![Kept; count],
        but(count - 1, Dropped, Kept),
        but(count - 1, Kept, Dropped),
        but(0, Kept, Dropped),
    ];
    if count <= combined {
        all.extend((1..(1usize << count) - 1).map(|bits| {
            (0..count).map(|i| if bits >> i & 1 == 1 { Kept } else { Dropped }).collect()
        }));
    } else {
        all.push(but(random.below(count), Kept, Dropped));
        all.push(but(random.below(count), Dropped, Kept));
        for _ in 0..1 << (combined / 2) {
            all.push((0..count).map(|_| [Kept, Dropped][random.below(2)]).collect());
        }
    }
    let writes: Vec<usize> =
        (0..count).filter(|&i| matches!(changes[i], Op::Write { .. })).collect();
    if let Some(&last) = writes.last() {
        for damage in [Torn, Zeros, Garbage] {
            all.push(but(last, Kept, damage));
            all.push((0..count).map(|i| if writes.contains(&i) { damage } else { Kept }).collect());
        }
        let any = [Kept, Dropped, Torn, Zeros, Garbage];
        for _ in 0..2 {
            let fate = |i| any[random.below(if writes.contains(&i) { 5 } else { 2 })];
            all.push((0..count).map(fate).collect());
        }
    }
    all
}

#[test]
fn few_changes_are_combined_in_all_ways_and_many_in_those_that_break_most() {
    let write = Op::Write { node: 1, offset: 0, bytes: vec![1] };
    let sync = Op::SetLen { node: 1, len: 7 };
    let mut random = Random(5);
    assert_eq!(fates(&[], 4, &mut random), [vec![]]);
    let few = fates(&[&write, &sync, &write, &write], 4, &mut random);
    for bits in 0..16 {
        let wanted: Vec<Fate> =
            (0..4).map(|i| if bits >> i & 1 == 1 { Kept } else { Dropped }).collect();
        assert!(few.contains(&wanted), "{wanted:?}");
    }
    assert!(
        few.contains(&vec![Torn, Kept, Torn, Torn]) && few.contains(&vec![Kept, Kept, Kept, Zeros])
    );
    assert!(
        few.iter().all(|fates| [Kept, Dropped].contains(&fates[1])),
        "only writes arrive in part"
    );
    let many = fates(&[&sync; 9], 4, &mut random);
    let mut only_last = vec![Dropped; 8];
    only_last.push(Kept);
    assert!(
        many.contains(&vec![Kept; 9])
            && many.contains(&vec![Dropped; 9])
            && many.contains(&only_last)
    );
    assert!(many.iter().any(|fates| fates.iter().filter(|&&fate| fate == Dropped).count() == 1));
}
