import CLockstepKernels

/// A snapshot of what is trained, as forward and backward passes read it: a model, its matrices transposed, and where
/// the gradients of each go.
final class TrainedModel: @unchecked Sendable {
    let model: Model
    let weights: TrainedWeights
    let head: Matrix
    let embedding: MatrixTarget
    let finalNorm: Int?
    let layers: [Layer]
    /// Matrices without anything that is trained, by the name of their first part: the next snapshot has the same.
    private let frozen: [String: Frozen]

    private struct Frozen {
        let weight: Head
        let transposed: Head
    }

    /// A matrix of the backward pass.
    struct Matrix {
        /// Its transpose: its rows are the weight's columns.
        let transposed: Head
        let target: MatrixTarget
    }

    struct Layer {
        let attentionNorm: Int?
        let projection: Matrix
        let headNorms: (query: Int?, key: Int?)
        let output: Matrix
        let mlpNorm: Int?
        let feedForward: FeedForward
    }

    enum FeedForward {
        case dense(MLP)
        case experts(router: Matrix, [MLP])
    }

    struct MLP {
        let gateAndUp: Matrix
        let down: Matrix
    }

    /// The masters as they are; `last` is the snapshot before it.
    init(_ weights: TrainedWeights, _ recipe: Recipe, after last: TrainedModel? = nil) throws(LockstepError) {
        let model = try Model(
            weights, weights.configuration, recipe, parameterCount: weights.modelCount,
            frozen: { last?.frozen[$0.parts[0].name]?.weight })
        var frozen: [String: Frozen] = [:]
        let names = WeightNames(weights.configuration)
        let memory = PanelMemory(isShared: true)
        func matrix(_ name: WeightNames.Matrix, _ weight: Head) throws(LockstepError) -> Matrix {
            let (target, key) = (weights.target(name), name.parts[0].name)
            let same = last?.frozen[key]?.transposed
            let transposed = if let same { same } else { try weight.transposed(in: memory) }
            if target.parts.isEmpty { frozen[key] = Frozen(weight: weight, transposed: transposed) }
            return Matrix(transposed: transposed, target: target)
        }
        func mlp(
            _ name: (gateAndUp: WeightNames.Matrix, down: WeightNames.Matrix), _ mlp: Model.MLP
        ) throws(LockstepError) -> MLP {
            MLP(gateAndUp: try matrix(name.gateAndUp, mlp.gateAndUp), down: try matrix(name.down, mlp.down))
        }
        var layers: [Layer] = []
        for (index, layer) in model.layers.enumerated() {
            let feedForward: FeedForward
            switch layer.feedForward {
            case .dense(let dense):
                feedForward = .dense(try mlp(names.mlp(index), dense))
            case .experts(let router, let experts):
                var all: [MLP] = []
                for (expert, weights) in experts.enumerated() {
                    all.append(try mlp(names.mlp(index, expert: expert), weights))
                }
                feedForward = .experts(router: try matrix(names.router(index), router), all)
            }
            let heads = names.headNorms(index)
            layers.append(
                Layer(
                    attentionNorm: weights.target(names.attentionNorm(index)),
                    projection: try matrix(names.projection(index), layer.projection),
                    headNorms: (weights.target(heads.query), weights.target(heads.key)),
                    output: try matrix(names.output(index), layer.output),
                    mlpNorm: weights.target(names.mlpNorm(index)), feedForward: feedForward))
        }
        self.model = model
        self.weights = weights
        self.layers = layers
        head = try matrix(weights.configuration.isTied ? names.embedding : names.head, model.head)
        embedding = weights.target(names.embedding)
        finalNorm = weights.target(names.finalNorm)
        self.frozen = frozen
    }
}

extension Head {
    /// The transpose: its rows are this head's columns.
    func transposed(in memory: PanelMemory) throws(LockstepError) -> Head {
        let values = try Scratch<UInt8>(count: vocab * hiddenSize * format.byteCount)
        func fill<Element: BitwiseCopyable>(_: Element.Type) {
            let width = Int(LSK_PANEL)
            let out = UnsafeMutableRawPointer(values.base).assumingMemoryBound(to: Element.self)
            for row in 0..<vocab {
                let from = panel(row / width).assumingMemoryBound(to: Element.self) + row % width
                for k in 0..<hiddenSize { out[k * vocab + row] = from[k * width] }
            }
        }
        if format.byteCount == 4 { fill(UInt32.self) } else { fill(UInt16.self) }
        return try Head(
            weight: MatrixView(values.base, format, rows: hiddenSize, columns: vocab), bias: nil, in: memory)
    }
}
