"""Runs a model: paged attention, continuous batching. No network, no Qt.

Glossary of tensor dimensions, as docstrings use them:

    num_tokens          tokens of one step, all sequences one after the other
    num_seqs            sequences of one step
    num_blocks          blocks of the KV cache; block 0 is the null block
    block_size          tokens per block
    max_blocks          columns of a block table
    num_heads           query heads; num_kv_heads divides it
    head_dim            size of one head
    hidden_size         width of the residual stream
    vocab_size          rows of the embedding
    slot                block_id * block_size + offset, where one token's keys and values lie
    cu_seqlens_q        [num_seqs + 1], int32: where each sequence's tokens begin in the step
    context_lens        [num_seqs], int32: tokens of each sequence in the cache after the step
"""
