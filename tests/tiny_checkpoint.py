"""A Hugging Face checkpoint of a few thousand weights, with a tokenizer and a chat template."""

import jax
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from larpo_jax.models import config as config_lib
from larpo_jax.models import huggingface, transformer

TEMPLATE = (
  "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
  "{% if message.role == 'assistant' %}<eos>{% endif %}{% endfor %}"
  "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer():
  """Bytes and no merges: 256 tokens and five special ones."""
  found = Tokenizer(models.BPE())
  found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  found.decoder = decoders.ByteLevel()
  special = ["<pad>", "<eos>", "<|system|>", "<|user|>", "<|assistant|>"]
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(
    vocab_size=len(alphabet) + len(special), special_tokens=special, initial_alphabet=alphabet
  )
  found.train_from_iterator([], trainer)
  wrapped = PreTrainedTokenizerFast(
    tokenizer_object=found, pad_token="<pad>", eos_token="<eos>", clean_up_tokenization_spaces=False
  )
  wrapped.add_special_tokens({"additional_special_tokens": special[2:]})
  wrapped.chat_template = TEMPLATE
  return wrapped


def make(directory, words=None, **shape):
  """Writes the checkpoint and returns its directory; shape overrides keys of config.json."""
  words = words or tokenizer()
  config = config_lib.read(
    dict(
      model_type="llama",
      vocab_size=len(words),
      hidden_size=32,
      intermediate_size=64,
      num_hidden_layers=2,
      num_attention_heads=4,
      num_key_value_heads=2,
      hidden_act="silu",
      rms_norm_eps=1e-5,
      max_position_embeddings=512,
      tie_word_embeddings=True,
      eos_token_id=words.eos_token_id,
      pad_token_id=words.pad_token_id,
    )
    | shape
  )
  _, params = transformer.create(config, jax.random.key(0))
  huggingface.save(directory, params, config, tokenizer=words)
  return directory
