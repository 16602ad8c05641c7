extension ModelConfiguration {
    /// The built-in model of the chain task: 4 layers of width 32, 2 heads of 16, 51,488 parameters; the 14 ids of the
    /// vocabulary are padded to 16.
    ///
    /// A Llama: positions are rotary and not learned, and the MLP is gated, so that its width of 88 has about the
    /// weights of one of 128 that is not.
    public static let chain = try! ModelConfiguration(
        .object([
            "model_type": .string("llama"), "vocab_size": .integer(16), "hidden_size": .integer(32),
            "intermediate_size": .integer(88), "num_hidden_layers": .integer(4),
            "num_attention_heads": .integer(2), "head_dim": .integer(16), "rms_norm_eps": .number(1e-6),
            "max_position_embeddings": .integer(64), "rope_theta": .number(10_000),
            "tie_word_embeddings": .bool(false),
        ]), "the chain task's model")
}
