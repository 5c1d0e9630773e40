-- Orthanc sends each stable MR series to the receiver, but none that came back from there; what fails, again a minute later.
local failed = {}

function OnStableSeries(series, tags, metadata)
   if tags['Modality'] == 'MR' and tags['Manufacturer'] ~= 'ddib-fed' then
      RestApiPost('/modalities/ddib/store', DumpJson({Resources = {series}, Asynchronous = true}, true))
   end
end

function OnJobFailure(job)
   failed[job] = true
end

function OnHeartBeat() -- every LuaHeartBeatPeriod seconds
   for job in pairs(failed) do
      failed[job] = nil
      RestApiPost('/jobs/' .. job .. '/resubmit', '{}')
   end
end
