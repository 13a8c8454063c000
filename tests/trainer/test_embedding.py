"""The written-out forward pass gives the vectors of the packaged model."""

import numpy as np
import pytest
from mark_trainer.embedding import DIMENSIONS, Embedder

# First numbers of each vector from sentence-transformers 6.2.0 with the same weights; it differs by less than 1e-6.
REFERENCE = {
    "The Licensor grants You a worldwide licence.": [0.04092, -0.05945, 0.00714, -0.06332, -0.00133, -0.01380],
    "Any notice must be given in writing within thirty (30) days of the breach, or it is void.": [
        -0.00112, 0.02274, 0.09386, 0.00134, 0.01940, 0.02938,
    ],
    "x": [-0.09791, -0.06400, -0.02318, -0.04620, 0.02170, -0.02849],
}  # fmt: skip


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder()


def test_vectors_equal_those_of_the_reference(embedder: Embedder) -> None:
    vectors = embedder.embed(list(REFERENCE))
    assert vectors.shape == (3, DIMENSIONS)
    np.testing.assert_allclose(vectors[:, :6], list(REFERENCE.values()), atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_neighbours_in_a_batch_and_length_do_not_change_a_vector(embedder: Embedder) -> None:
    texts = ["A short text.", "A much longer text " * 100, "x"]
    together = embedder.embed(texts)
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_no_texts_give_no_vectors(embedder: Embedder) -> None:
    assert embedder.embed([]).shape == (0, DIMENSIONS)
