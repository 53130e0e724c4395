"""Networks that were published by others, unmodified: tapped, trained, saved, resumed, predicted.

Needs `pip install jax-resnet==0.0.4 flaxmodels==0.1.3 transformers==4.56.2` and, as it names other
versions of jax and flax than ours, `pip install --no-deps vitax==0.0.10`; skipped without them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import interflow_jax as ij
from interflow_jax.checkpoints import Checkpoints, fingerprint

pytest.importorskip("jax_resnet")
pytest.importorskip("flaxmodels")
pytest.importorskip("vitax")

SIZE = 32
STAGES = ("layers_4", "layers_8", "layers_14", "layers_17")  # of ResNet50 and ResNeSt50
NETWORKS = {
    "jax_resnet:ResNet18": ("n_classes=10", ("layers_3", "layers_5", "layers_7", "layers_9")),
    "jax_resnet:ResNet50": ("n_classes=10", STAGES),
    "jax_resnet:ResNeSt50": ("n_classes=10", STAGES),
    "flaxmodels:ResNet18": (
        "num_classes=10,pretrained=None,output=logits",
        ("BasicBlock_1", "BasicBlock_3", "BasicBlock_5", "BasicBlock_7"),
    ),
    "flaxmodels:VGG16": (
        "num_classes=10,pretrained=None,output=logits,include_head=False",
        ("conv2_2", "conv3_3", "conv4_3", "conv5_3"),
    ),
    "vitax:VisionTransformer": (  # NNX
        "num_classes=10,img_size=32,patch_size=8,num_layers=4,num_heads=2,mlp_dim=128,"
        "hidden_size=64,fsdp=False",
        tuple(f"encoder/layers/{block}" for block in range(4)),
    ),
}


@pytest.fixture(autouse=True)
def as_others_write():
    """Others broadcast vectors over maps, which our own tests forbid."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("name", NETWORKS)
def test_a_published_network_trains_resumes_and_predicts(name, tmp_path):
    options, taps = NETWORKS[name]
    network = ij.load_network(name, options)
    shapes = {layer.path: layer.shape for layer in ij.network_layers(network, (SIZE, SIZE, 3))}
    assert set(taps) <= set(shapes)
    images = np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3), np.uint8)
    labels = np.arange(8) % 10
    dataset = ij.data.from_arrays(train=(images, labels), test=(images, labels))
    model = ij.build("S1", len(dataset.class_names), taps=taps, network=network)
    trainer = ij.Trainer(model, dataset, epochs=2, batch_size=8)
    state, metrics = trainer.train_epoch(trainer.init(0), 0)
    assert np.isfinite(metrics.loss)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {})
    through, _ = trainer.train_epoch(state, 1)
    restored = checkpoints.restore(through)
    checkpoints.close()
    assert restored is not None
    resumed, _ = trainer.train_epoch(trainer.put(restored.state), 1)
    assert fingerprint(resumed) == fingerprint(through)
    prediction = trainer.predict(resumed, images[:3])
    assert prediction.branch_logits.shape == (3, len(taps), len(dataset.class_names))
    # In evaluation nothing is dropped, and no image's prediction depends on the others.
    alone = trainer.predict(resumed, images[:1])
    np.testing.assert_allclose(alone.logits, prediction.logits[:1], rtol=1e-5, atol=1e-5)
    # The backbone's maps are the network's own outputs of those layers.
    variables = {"params": resumed.params, "batch_stats": resumed.batch_stats}
    maps = model.bind(variables).backbone(jnp.zeros((1, SIZE, SIZE, 3)))
    assert [x.shape for x in maps] == [shapes[tap] for tap in taps]
