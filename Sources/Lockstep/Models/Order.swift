/// The order of a model's arithmetic, and where its results are rounded.
///
/// Two engines of one recipe give the same bits only in the same order. The others model the stacks of the field: what
/// another kernel or another library makes of the same weights (docs/Models.md has the rounding points). Each is a
/// function of a sequence's tokens alone, whatever the batch and the threads, and does both: it scores and samples.
public enum Order: Int32, CaseIterable, Sendable {
    /// The library's own: products in chains of 128, each operation rounded once.
    case lockstep = 0
    /// Each half of a product's k by itself, then their sum: another GEMM, or two devices.
    case splitK = 1
    /// Attention over tiles of 64 keys with an online softmax: FlashAttention.
    case flash = 2
    /// A rounding after every elementary operation: transformers' own code, as a trainer runs it.
    case eager = 3
    /// Split products, tiled attention, and fewer roundings than operations: an inference engine, a compiled trainer.
    case fused = 4

    /// The name that recipes carry: `lockstep`, `split-k`, `flash`, `eager`, `fused`.
    public var name: String {
        switch self {
        case .lockstep: "lockstep"
        case .splitK: "split-k"
        case .flash: "flash"
        case .eager: "eager"
        case .fused: "fused"
        }
    }

    var splitsProducts: Bool { self == .splitK || self == .fused }
    var tilesAttention: Bool { self == .flash || self == .fused }
    var roundsEachStep: Bool { self == .eager }
    var fusesOperations: Bool { self == .fused }
}
