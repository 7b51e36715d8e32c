"""No mesh sends more than it has to: a change that adds a collective fails here."""

import communication
import pytest

# Of the bytes of all parameters, by kind: what docs/scaling.md explains, and a tenth more.
MOST = {
  "data=8": {"all-reduce": 1.0},
  "fsdp=8": {"all-reduce": 0.83, "all-gather": 1.49, "all-to-all": 0.14},
  "data=2 fsdp=4": {"all-reduce": 1.16, "all-gather": 1.62, "all-to-all": 0.07},
  "fsdp=4 tensor=2": {"all-reduce": 3.56, "all-gather": 0.76, "all-to-all": 0.27},
  "tensor=8": {"all-reduce": 5.57},
}


@pytest.mark.parametrize("mesh", MOST)
def test_a_step_sends_no_more_than_is_known(mesh):
  shape = {axis: int(size) for axis, size in (part.split("=") for part in mesh.split())}
  found, parameters = communication.of_step(shape)
  for kind, (_, size) in communication.totals(found).items():
    assert size <= 1.1 * MOST[mesh].get(kind, 0.0) * parameters + 4096, (kind, size / parameters)
  if "tensor" not in mesh:  # but for the lookup of embeddings, tokens stay on their device
    of_tokens = [each for each in found if any(n % communication.ROOM == 0 for n in each[1])]
    assert sum(size for _, _, size in of_tokens) <= 0.25 * parameters, of_tokens


def test_what_is_sent_is_counted():
  text = "  %a = (f32[4,2]{1,0}, s32[]) all-reduce-start(%x), a\n %b = bf16[8]{0} all-gather(%y)"
  found = communication.sent(text)
  assert communication.totals(found) == {"all-reduce": (2, 36), "all-gather": (1, 16)}
