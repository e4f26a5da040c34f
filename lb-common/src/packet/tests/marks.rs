//! The mark that other people's rules see.

use super::{Scene, everywhere};
use crate::table::{ConfigFlags, ServiceFlags};

const MARK: u32 = 1 << 14;
/// Somebody else's bits.
const FOREIGN: u32 = 0x10000;

#[test]
fn a_request_is_marked_until_it_is_masqueraded() {
    everywhere(|family, protocol| {
        let scene = Scene::new(family, protocol);
        let (client, backend) = (scene.client(), scene.backend_end());
        for packet in [
            scene.opening(&client, &scene.node_port()),
            scene.data(&client, &scene.node_port()),
        ] {
            scene.world.mark.set(FOREIGN);
            scene.arrives(packet, &client, &backend);
            assert_eq!(scene.world.mark.get(), FOREIGN | MARK);
            let packet = scene.data(&client, &backend);
            assert_ne!(scene.leaves_from(packet), client);
            assert_eq!(scene.world.mark.get(), FOREIGN);
        }
    });
}

#[test]
fn what_keeps_its_source_is_not_marked() {
    everywhere(|family, protocol| {
        let mut scene = Scene::with_flags(family, protocol, ServiceFlags::EXTERNAL_LOCAL);
        scene.world.tables.config.flags |= ConfigFlags::MARK_REPLIES;
        let (client, backend) = (scene.client(), scene.backend_end());
        scene.arrives(
            scene.opening(&client, &scene.node_port()),
            &client,
            &backend,
        );
        assert_eq!(scene.world.mark.get(), 0);
    });
}

#[test]
fn replies_are_marked_as_they_arrive_where_that_is_asked_for() {
    everywhere(|family, protocol| {
        for (flags, local) in [
            (0, false),
            (ConfigFlags::MARK_REPLIES, false),
            (0, true),
            (ConfigFlags::MARK_REPLIES, true),
        ] {
            let service = if local {
                ServiceFlags::EXTERNAL_LOCAL
            } else {
                0
            };
            let mut scene = Scene::with_flags(family, protocol, service);
            scene.world.tables.config.flags |= flags;
            let (client, backend) = (scene.client(), scene.backend_end());
            scene.arrives(
                scene.opening(&client, &scene.node_port()),
                &client,
                &backend,
            );
            let seen = scene.leaves_from(scene.opening(&client, &backend));
            assert_eq!(seen == client, local);
            scene.world.mark.set(0);
            scene.arrives(scene.data(&backend, &seen), &backend, &client);
            assert_eq!(scene.world.mark.get(), if flags == 0 { 0 } else { MARK });
        }
    });
}
