import Lockstep
print(versionString)
