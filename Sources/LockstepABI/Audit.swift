import CLockstep
import Lockstep

// Section 10 of the header: the FP16 headroom of a checkpoint.

/// What a lockstep_audit points to: its rows, with names that are lent.
private final class AuditBox {
    let rows: [lockstep_headroom]
    private let names = LentTexts()

    init(_ found: [Headroom]) {
        let names = names
        rows = found.map { row in
            lockstep_headroom(
                name: names.lend(row.name), kind: row.kind.rawValue, layer: Int32(row.layer),
                count: Int64(row.count), largest: row.largest,
                subnormal: Int64(row.subnormal), vanishing: Int64(row.vanishing),
                overflowing: Int64(row.overflowing), non_finite: Int64(row.nonFinite))
        }
    }
}

@_cdecl("lockstep_audit_create") @implementation
public func lockstep_audit_create(
    _ audit: UnsafeMutablePointer<OpaquePointer?>!, _ path: UnsafePointer<CChar>!,
    _ tokens: UnsafePointer<lockstep_tensor>!, _ offsets: UnsafePointer<lockstep_tensor>!,
    _ options: UnsafePointer<lockstep_score_options>!
) -> lockstep_status {
    create(audit, path, tokens, offsets, lossScale: nil, options)
}

@_cdecl("lockstep_audit_create_backward") @implementation
public func lockstep_audit_create_backward(
    _ audit: UnsafeMutablePointer<OpaquePointer?>!, _ path: UnsafePointer<CChar>!,
    _ tokens: UnsafePointer<lockstep_tensor>!, _ offsets: UnsafePointer<lockstep_tensor>!,
    _ loss_scale: Double, _ options: UnsafePointer<lockstep_score_options>!
) -> lockstep_status {
    create(audit, path, tokens, offsets, lossScale: loss_scale, options)
}

private func create(
    _ audit: UnsafeMutablePointer<OpaquePointer?>?, _ path: UnsafePointer<CChar>?,
    _ tokens: UnsafePointer<lockstep_tensor>?, _ offsets: UnsafePointer<lockstep_tensor>?,
    lossScale: Double?, _ options: UnsafePointer<lockstep_score_options>?
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        guard let audit else { throw invalid("audit is NULL; give the address of a lockstep_audit pointer") }
        let options = try read(options, defaults: lockstep_score_options())
        let folder = try text(path, "path")
        var (ids, bounds): (TokenView?, TokenView?) = (nil, nil)
        if tokens != nil {
            let tensor = try CheckedTensor(tokens, "tokens")
            ids = try tensor.tokens("[tokens]")
            bounds = try optionalOffsets(offsets, for: tensor)
        }
        let found = try auditHeadroom(
            path: folder, tokens: ids, offsets: bounds, lossScale: lossScale,
            execution: execution(threads: options.threads, options.instruction_set))
        audit.pointee = retained(AuditBox(found))
    }
}

@_cdecl("lockstep_audit_read") @implementation
public func lockstep_audit_read(
    _ row: UnsafeMutablePointer<lockstep_headroom>!, _ count: UnsafeMutablePointer<Int>!,
    _ audit: OpaquePointer!, _ index: Int
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let box: AuditBox = try held(audit, "audit", from: "lockstep_audit_create")
        let rows = box.rows
        if row != nil {
            try checkArray(row, "row", count: 1)
            guard rows.indices.contains(index) else {
                throw invalid("index is \(UInt(bitPattern: index)) but there are \(rows.count) rows")
            }
            row.pointee = rows[index]
        }
        count?.pointee = rows.count
    }
}

@_cdecl("lockstep_audit_destroy") @implementation
public func lockstep_audit_destroy(_ audit: OpaquePointer!) {
    release(audit)
}
