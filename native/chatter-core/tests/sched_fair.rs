//! Queues that share by bytes, and the levels made of them.

use chatter_core::sched::fair::{Fair, Level, Levels, QUANTUM};
use proptest::prelude::*;

/// Given queues that never run dry, whatever the sizes of what is in them, expect equal shares by bytes.
#[test]
fn shares_are_equal_by_bytes() {
    for sizes in [[16, 16_000, 1_000], [40, 40, 16_500], [QUANTUM, 1, 5_000]] {
        let mut fair = Fair::<usize, ()>::default();
        for (key, len) in sizes.iter().enumerate() {
            (0..2).for_each(|_| fair.push(key, (), *len));
        }
        let mut sent = [0; 3];
        while sent.iter().sum::<usize>() < 100 * QUANTUM {
            let (key, (), len) = fair.pop().unwrap();
            fair.push(key, (), sizes[key]);
            sent[key] += len;
        }
        let (least, most) = (sent.iter().min().unwrap(), sent.iter().max().unwrap());
        assert!(most - least <= 2 * QUANTUM, "{sizes:?}: {sent:?}");
    }
}

/// Given a queue that comes when another has been alone for long, expect it not to pay for that, nor to
/// be paid.
#[test]
fn nobody_saves_up_while_alone() {
    let mut fair = Fair::<u8, ()>::default();
    (0..1_000).for_each(|_| fair.push(1, (), 1_000));
    (0..900).for_each(|_| assert_eq!(fair.pop().map(|(key, ..)| key), Some(1)));
    (0..100).for_each(|_| fair.push(2, (), 1_000));
    let next: Vec<u8> = (0..100).map(|_| fair.pop().unwrap().0).collect();
    let second = next.iter().filter(|key| **key == 2).count();
    assert!((34..=66).contains(&second), "{second} of 100");
}

/// Given what does not fit, expect the newest thing of the fattest queue to go: of equal ones, of the
/// largest key.
#[test]
fn the_fattest_loses_its_newest() {
    let mut fair = Fair::<u8, u8>::default();
    assert_eq!(fair.fattest(), None);
    fair.push(1, 10, 500);
    fair.push(1, 11, 600);
    fair.push(2, 20, 1_000);
    assert_eq!(fair.fattest(), Some((1_100, 1)));
    assert_eq!(fair.drop_newest(1), Some((11, 600)));
    assert_eq!(fair.fattest(), Some((1_000, 2)));
    assert_eq!(fair.drop_newest(2), Some((20, 1_000)));
    assert_eq!(fair.drop_newest(2), None);
    assert_eq!(fair.pop(), Some((1, 10, 500)));
    assert!(fair.is_empty() && fair.pop().is_none() && fair.fattest().is_none());
}

/// Urgent things keep their order whatever their keys, and are spared when something has to go.
#[test]
fn levels_are_apart() {
    let mut levels = Levels::<u8, u8>::default();
    assert!(levels.is_empty() && !levels.has_urgent());
    for (at, level) in Level::ALL.into_iter().enumerate() {
        assert_eq!(level as usize, at);
        levels.push(level, 1, 10 + at as u8, 100);
        levels.push(level, 2, 20 + at as u8, 100 + at);
    }
    assert_eq!(levels.ready(), 0b1111);
    assert_eq!(levels.fattest(), Some((103, Level::Low, 2)));
    assert_eq!(levels.drop_newest(Level::Low, 2), Some((23, 103)));
    assert_eq!(levels.pop(Level::Urgent), Some((None, 11, 100)));
    assert_eq!(levels.pop(Level::Urgent), Some((None, 21, 101)));
    assert!(!levels.has_urgent());
    assert_eq!(levels.ready(), 0b1101);
    assert_eq!(levels.pop(Level::Urgent), None);
    assert_eq!(levels.pop(Level::Low), Some((Some(1), 13, 100)));
    assert_eq!(levels.drop_newest_urgent(), None);
    assert_eq!(levels.ready(), 0b0101);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    /// Given any pushes, pops and drops, expect each queue in order, all of it once, and its bytes known.
    #[test]
    fn queues_keep_their_order(steps in proptest::collection::vec((0..4u8, 0..4u8, 0..40_000usize), 0..300)) {
        let mut fair = Fair::<u8, usize>::default();
        let mut model: Vec<std::collections::VecDeque<(usize, usize)>> = vec![Default::default(); 4];
        for (number, (what, key, len)) in steps.into_iter().enumerate() {
            let queue = &mut model[usize::from(key)];
            match what {
                0 => {
                    if let Some((key, number, len)) = fair.pop() {
                        prop_assert_eq!(model[usize::from(key)].pop_front(), Some((number, len)));
                    }
                }
                1 => prop_assert_eq!(fair.drop_newest(key), queue.pop_back()),
                _ => {
                    fair.push(key, number, len);
                    queue.push_back((number, len));
                }
            }
            let bytes = |queue: &std::collections::VecDeque<(usize, usize)>| queue.iter().map(|(_, len)| len).sum::<usize>();
            let fattest = (0..4u8).filter(|key| !model[usize::from(*key)].is_empty()).map(|key| (bytes(&model[usize::from(key)]), key)).max();
            prop_assert_eq!(fair.fattest(), fattest);
            prop_assert_eq!(fair.is_empty(), fattest.is_none());
        }
        while let Some((key, number, len)) = fair.pop() {
            prop_assert_eq!(model[usize::from(key)].pop_front(), Some((number, len)));
        }
        prop_assert!(model.iter().all(|queue| queue.is_empty()));
    }
}
